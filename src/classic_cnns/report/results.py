"""The table of a sweep, or of any runs: read from their directories, and nothing else."""

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf

from classic_cnns.errors import UserError
from classic_cnns.files import read_json, replacing
from classic_cnns.report.markdown import aligned

COLUMNS = ("best_validation_error", "last_validation_error", "test_error", "seconds")
HEADS = ("best validation", "last validation", "test", "seconds")


@dataclass
class Row:
    """One run; `parameters` are those in which it may differ from the others."""

    name: str
    parameters: dict[str, str]
    directory: Path
    command: str
    state: str
    error: str
    values: tuple[float | None, ...]  # of COLUMNS; errors as fractions

    @property
    def group(self) -> tuple[tuple[str, str], ...]:
        """What it shares with the runs that differ in nothing but their seed."""
        return tuple(pair for pair in self.parameters.items() if pair[0] != "seed")


def read(directories: Sequence[str | Path]) -> list[Row]:
    """The rows of runs and of sweeps; UserError for a directory that is neither."""
    rows = []
    for directory in map(Path, directories):
        if (directory / "sweep.yaml").is_file():
            rows += read_sweep(directory)
        elif (directory / "config.yaml").is_file():
            rows.append(read_run(directory))
        else:
            raise UserError(
                f"{directory}: is no run and no sweep (it would have a config.yaml or a "
                "sweep.yaml); try a directory under outputs/"
            )
    keys = list(dict.fromkeys(key for row in rows for key in row.parameters))
    same = {key for key in keys if len({row.parameters.get(key) for row in rows}) == 1}
    sweep_alone = len(directories) == 1  # says itself what it varies
    for row in rows:
        row.parameters = {
            key: row.parameters.get(key, "") for key in keys if sweep_alone or key not in same
        }
    return rows


def assignments(words: Sequence[str]) -> dict[str, str]:
    """Keys and values of overrides; other words of a command line are left out."""
    pairs = [word.lstrip("+").split("=", 1) for word in words if "=" in word and word[0] != "-"]
    return {key: value for key, value in pairs}


def read_sweep(directory: Path) -> list[Row]:
    sweep: Any = OmegaConf.to_container(OmegaConf.load(directory / "sweep.yaml"))
    rows = []
    for number, words in enumerate(sweep["jobs"]):
        given = assignments(words)
        parameters = {key: given[key] for key in sweep["varied"]}
        command = shlex.join([*sweep["program"], *words])
        rows.append(row(str(number), parameters, directory / str(number), command))
    return rows


def read_run(directory: Path) -> Row:
    """A run by itself: its parameters are what its command says."""
    config: Any = OmegaConf.load(directory / "config.yaml")
    starts = read_json(directory / "provenance.json")
    words = starts[0]["command"][2:] if starts else []
    own = ("run_dir=", "varied=")
    kept = [word for word in words if not word.startswith(own)]
    command = shlex.join(["python", *(starts[0]["command"][1:2] if starts else []), *kept])
    return row(directory.name, {"name": config.name} | assignments(kept), directory, command)


def row(name: str, parameters: dict[str, str], directory: Path, command: str) -> Row:
    result = read_json(directory / "result.json")
    state = result["status"] if result else "unfinished" if directory.exists() else "waiting"
    values: tuple[float | None, ...] = (None,) * len(COLUMNS)
    error = ""
    if state == "finished":
        val, test = result["metrics"]["val"], result["metrics"]["test"]
        values = (val["error"], val["last_error"], test["error"], result["seconds"])
    elif result:
        error = last_line(result.get("error", ""))
    return Row(name, parameters, directory, command, state, error, values)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def write(folder: Path, rows: Sequence[Row]) -> None:
    """`results.csv`, exact and with a line for each run, and `results.md`, to be read."""
    lines = io.StringIO()
    keys = list(rows[0].parameters)
    sheet = csv.writer(lines)
    sheet.writerow(["job", *keys, "state", *COLUMNS, "error", "directory"])
    for r in rows:
        values = ["" if value is None else value for value in r.values]
        sheet.writerow([r.name, *r.parameters.values(), r.state, *values, r.error, r.directory])
    for name, text in (("results.csv", lines.getvalue()), ("results.md", markdown(rows) + "\n")):
        with replacing(folder / name) as file:
            file.write(text.encode())


def markdown(rows: Sequence[Row]) -> str:
    """All runs; mean and standard deviation over seeds; the best one; what became of the others."""
    keys = list(rows[0].parameters)
    cells = [("job", *keys, "state", *HEADS)]
    cells += [(r.name, *r.parameters.values(), r.state, *map(shown, r.values, HEADS)) for r in rows]
    parts = [aligned([[cell.replace("|", "\\|") for cell in line] for line in cells])]
    done = [r for r in rows if r.state == "finished"]
    groups = [
        [r for r in done if r.group == group] for group in dict.fromkeys(r.group for r in done)
    ]
    if "seed" in keys and any(len(group) > 1 for group in groups):
        cells = [(*(key for key in keys if key != "seed"), "n", *HEADS)]
        for group in groups:
            columns = zip(*(r.values for r in group), strict=True)
            spread = map(mean_and_deviation, columns, HEADS)
            cells.append((*(value for _, value in group[0].group), str(len(group)), *spread))
        parts += ["Mean ± standard deviation over seeds:", aligned(cells)]
    if done:
        best = min(done, key=lambda r: r.values[0] or 0.0)
        error = shown(best.values[0], HEADS[0])
        parts += [f"Best: job {best.name}, {error} validation error. To repeat it:"]
        parts += [f"    {best.command}"]
    parts += [f"Job {r.name} {r.state}: {r.error} ({r.directory})" for r in rows if r.error]
    return "\n\n".join(parts)


def shown(value: float | None, head: str) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if head == "seconds" else f"{value:.2%}"


def mean_and_deviation(values: Sequence[float], head: str) -> str:
    text = shown(mean(values), head)
    return text if len(values) == 1 else f"{text} ± {shown(stdev(values), head)}"


def end(directory: Path) -> int:
    """Of a sweep: print the table; the exit code says whether all jobs have finished."""
    rows = read([directory])
    print(f"\n{markdown(rows)}")
    return int(any(row.state != "finished" for row in rows))

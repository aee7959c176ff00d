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

from classic_cnns import UserError
from classic_cnns.files import read_json, replacing
from classic_cnns.report.markdown import aligned

# Columns of results.csv, and of results.md; errors are fractions.
VALUES = {
    "best_validation_error": "best validation",
    "last_validation_error": "last validation",
    "test_error": "test",
    "seconds": "seconds",
}


@dataclass
class Row:
    """One run; `parameters` are those in which it may differ from the others."""

    name: str
    parameters: dict[str, str]
    directory: Path
    command: str
    state: str
    error: str
    values: dict[str, float]  # of VALUES; empty if the run has not finished

    @property
    def group(self) -> tuple[tuple[str, str], ...]:
        """What it shares with the runs that differ in nothing but their seed."""
        return tuple(pair for pair in self.parameters.items() if pair[0] != "seed")


def read(directories: Sequence[str | Path]) -> list[Row]:
    """The rows of runs and of sweeps; UserError for a directory that is neither."""
    rows: list[Row] = []
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
    if len(directories) > 1:  # a sweep alone says itself what it varies
        keys = [key for key in keys if len({row.parameters.get(key) for row in rows}) > 1]
    for row in rows:
        row.parameters = {key: row.parameters.get(key, "") for key in keys}
    return rows


def assignments(words: Sequence[str]) -> dict[str, str]:
    """Keys and values of the overrides among the words of a command line."""
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
    starts = read_json(directory / "provenance.json") or [{"command": []}]
    words = [w for w in starts[0]["command"][1:] if not w.startswith(("run_dir=", "varied="))]
    parameters = {"name": config.name} | assignments(words)
    return row(directory.name, parameters, directory, shlex.join(["python", *words]))


def row(name: str, parameters: dict[str, str], directory: Path, command: str) -> Row:
    result: Any = read_json(directory / "result.json") or {
        "status": "unfinished" if directory.exists() else "waiting"
    }
    numbers = []
    if result["status"] == "finished":
        val, test = result["metrics"]["val"], result["metrics"]["test"]
        numbers = [val["error"], val["last_error"], test["error"], result["seconds"]]
        result["error"] = ""
    error = result.get("error", "").strip().rpartition("\n")[2]
    values = dict(zip(VALUES, numbers, strict=False))
    return Row(name, parameters, directory, command, result["status"], error, values)


def write(folder: Path, rows: Sequence[Row]) -> None:
    """`results.csv`, exact and with a line for each run, and `results.md`, to be read."""
    lines = io.StringIO()
    columns = ["job", *rows[0].parameters, "state", *VALUES, "error", "directory"]
    sheet = csv.DictWriter(lines, columns)
    sheet.writeheader()
    for r in rows:
        own = {"job": r.name, "state": r.state, "error": r.error, "directory": r.directory}
        sheet.writerow(own | r.parameters | r.values)
    for name, text in (("results.csv", lines.getvalue()), ("results.md", markdown(rows) + "\n")):
        with replacing(folder / name) as file:
            file.write(text.encode())


def markdown(rows: Sequence[Row]) -> str:
    """All runs; mean and standard deviation over seeds; the best one; what became of the others."""
    cells = [["job", *rows[0].parameters, "state", *VALUES.values()]]
    cells += [[r.name, *r.parameters.values(), r.state, *shown([r])] for r in rows]
    parts = [aligned([[cell.replace("|", "\\|") for cell in line] for line in cells])]
    done = [r for r in rows if r.state == "finished"]
    groups: dict[tuple, list[Row]] = {}
    for r in done:
        groups.setdefault(r.group, []).append(r)
    if any(len(group) > 1 for group in groups.values()) and "seed" in rows[0].parameters:
        cells = [[*(key for key, _ in rows[0].group), "n", *VALUES.values()]]
        for shared, group in groups.items():
            cells.append([*(value for _, value in shared), str(len(group)), *shown(group)])
        parts += ["Mean ± standard deviation over seeds:", aligned(cells)]
    if done:
        best = min(done, key=lambda r: r.values["best_validation_error"])
        error = shown([best])[0]
        parts += [f"Best: job {best.name}, {error} validation error. To repeat it:"]
        parts += [f"    {best.command}"]
    parts += [f"Job {r.name} {r.state}: {r.error} ({r.directory})" for r in rows if r.error]
    return "\n\n".join(parts)


def shown(rows: Sequence[Row]) -> list[str]:
    """The cells of VALUES: of a run, or mean and deviation of several."""
    cells = []
    for name in VALUES:
        numbers = [r.values[name] for r in rows if r.values]
        ways = [mean(numbers), *([stdev(numbers)] if len(numbers) > 1 else [])] if numbers else []
        form = "{:.1f}" if name == "seconds" else "{:.2%}"
        cells.append(" ± ".join(form.format(number) for number in ways))
    return cells


def end(directory: Path) -> int:
    """Of a sweep: print the table; the exit code says whether all jobs have finished."""
    rows = read([directory])
    print(f"\n{markdown(rows)}")
    return int(any(row.state != "finished" for row in rows))

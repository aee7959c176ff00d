"""The results table of sweeps and runs, read from their directories."""

import csv
import io
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from classic_cnns import UserError, files, one_line, printable
from classic_cnns.report.markdown import markdown_table

OF_DIRECTORY = ("run_dir=", "varied=")  # words that do not belong to the command of a user
NOT_COMPARED = {"run_dir", "resume", "varied", "config_dirs"}  # keys that say nothing of training
OURS = ("/train.py", "/classic-cnns", "/classic_cnns/__main__.py")  # programs that take overrides
ENDED_WELL = ("finished", "pruned")  # states of a run that has ended well
MARKERS = "os^vD<P>X*"  # of curves, whose colours are not distinct to everyone, nor in print


@dataclass
class Row:
    """One run; `parameters` are those in which it may differ from the others."""

    name: str
    parameters: dict[str, str]
    directory: Path
    command: str
    state: str
    error: str
    values: dict[str, float]  # by column

    @property
    def group(self) -> tuple[tuple[str, str], ...]:
        """The parameters without the seed: runs that share them are averaged."""
        return tuple(pair for pair in self.parameters.items() if pair[0] != "seed")


@dataclass
class Table:
    """Runs, compared by a `metric` of their `result.json`; `direction` is minimize or maximize."""

    rows: list[Row]
    metric: str = "error/val"
    direction: str = "minimize"

    @property
    def columns(self) -> list[str]:
        """The metric of the best and the last epoch, test metrics, and seconds of training."""
        test = self.metric.rpartition("/")[0] + "/test"
        names = dict.fromkeys([self.metric, f"last {self.metric}", test, "error/test", "seconds"])
        return [n for n in names if n == self.metric or any(n in r.values for r in self.rows)]

    def rank(self, *runs: Row) -> float:
        """A sort key for the mean of some runs: smaller for better ones, inf without a result."""
        sign = -1 if self.direction == "maximize" else 1
        return mean(sign * r.values[self.metric] if self.metric in r.values else inf for r in runs)

    def ranked(self) -> list[Row]:
        """The rows, best first; runs without a result last, in the order of their numbers."""
        return sorted(self.rows, key=lambda r: self.rank(r) if r.state == "finished" else inf)

    def groups(self) -> dict[tuple, list[Row]]:
        """The started runs by their parameters without the seed, one of each seed.

        A run that was repeated with its seed is no second sample; the last finished one is taken.
        """
        found: dict[tuple, dict[str, Row]] = {}
        for r in (r for r in self.rows if r.state != "waiting"):
            seeds, seed = found.setdefault(r.group, {}), r.parameters.get("seed", "")
            if r.state == "finished" or seed not in seeds:
                seeds[seed] = r
        return {group: list(seeds.values()) for group, seeds in found.items()}

    def write(self, folder: Path) -> None:
        """Write `results.csv`, with exact values, and `results.md`, for people."""
        lines = io.StringIO()
        columns = ["job", *self.rows[0].parameters, "state", *self.columns, "error", "directory"]
        sheet = csv.DictWriter(lines, columns, extrasaction="ignore")
        sheet.writeheader()
        for r in self.rows:
            own = {"job": r.name, "state": r.state, "error": r.error, "directory": r.directory}
            sheet.writerow(own | r.parameters | r.values)
        files.write_text(folder / "results.csv", lines.getvalue())
        files.write_text(folder / "results.md", self.markdown() + "\n")

    def markdown(self) -> str:
        """All runs, the errors of failed ones, mean and deviation over seeds, and the best run."""
        rows = self.ranked()
        cells = [["job", *rows[0].parameters, "state", *self.columns]]
        for r in rows:
            parameters = map(format_parameter, r.parameters.values())
            cells.append([r.name, *parameters, r.state, *self.shown([r])])
        parts, failures = [markdown_table(cells)], [r for r in self.rows if r.error]
        errors = [f"- Job {r.name} {r.state}: {r.error} ({r.directory})" for r in failures]
        parts += ["\n".join(errors)] if errors else []
        finished = [r for r in rows if r.state == "finished"]
        groups = []  # sort key, shared parameters, number of seeds, finished runs
        for shared, started in self.groups().items():
            if done := [r for r in started if r.state == "finished"]:
                rank, n = self.rank(*done), str(len(done))
                partial = len(done) < len(started)  # the seeds that failed may have been the worst
                n += f" of {len(started)}" if partial else ""
                groups.append(((partial or rank == inf, rank), shared, n, done))
        groups.sort(key=lambda group: group[0])
        best = finished[:1]
        if "seed" in rows[0].parameters and any(n != "1" for _, _, n, _ in groups):
            best = sorted(groups[0][-1], key=self.rank)  # not the luckiest seed of all
            cells = [[*(key for key, _ in rows[0].group), "n", *self.columns]]
            for _, shared, n, done in groups:
                values = (format_parameter(value) for _, value in shared)
                cells.append([*values, n, *self.shown(done)])
            parts += ["Mean ± standard deviation over seeds:", markdown_table(cells)]
        if best and self.metric in best[0].values:
            name, value = best[0].name, format_value(self.metric, best[0].values[self.metric])
            run = best[0].directory
            checkpoint = files.used_checkpoint(run) or files.newest_checkpoint(run) or run
            parts += [f"Best: job {name}, {self.metric} {value}, {checkpoint}"]
            if best[0].command:
                start = read_starts(run)[0]
                threads = start.get("threads") if start.get("device") == "cpu" else None
                exactly = f"OMP_NUM_THREADS={threads} " if threads else ""  # to the last digits
                parts += [f"To repeat it:\n\n    {exactly}{best[0].command}"]
        elif finished:
            parts += [f"No run has the metric {self.metric}; set sweep.metric to another one."]
        parts += [f"{len(failures)} of {len(rows)} jobs have errors, see above"] if failures else []
        return "\n\n".join(parts)

    def shown(self, rows: Sequence[Row]) -> list[str]:
        """The cells of the columns for one run, or mean and standard deviation of several."""
        cells = []
        for name in self.columns:
            found = [r.values[name] for r in rows if name in r.values]
            numbers = [mean(found)] if found else []
            numbers += [stdev(found)] if len(found) > 1 else []
            cells.append(" ± ".join(format_value(name, number) for number in numbers))
        return cells


def format_value(metric: str, value: float) -> str:
    if metric == "seconds":
        return f"{value:.1f}"
    return f"{value:.2%}" if is_share(metric) else f"{value:.4g}"


def is_share(metric: str) -> bool:
    """Whether a metric is shown in percent."""
    return metric.removeprefix("last ").startswith(("error/", "accuracy/", "top5_error/"))


def drawn_text(text: str, most: int = 20) -> str:
    """A user's text for matplotlib, to which `$` would start a formula, in one line.

    Of more than `most` letters, both ends are kept: paths and layers differ in the last ones.
    """
    text = printable(text)  # undecodable bytes of a file name end in an exception
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[-((most - 1) // 2) :]}"
    return text.replace("$", r"\$")


def format_parameter(text: str) -> str:
    """A parameter's value; numbers with many decimals, as a search draws them, are rounded."""
    try:
        return f"{float(text):.4g}" if len(text) > 8 and "." in text else text
    except ValueError:
        return text


def read_table(directories: Sequence[str | Path]) -> Table:
    """The table of all runs and sweeps in these directories and below.

    Raises UserError for a directory that has none.
    """
    found: list[Path] = []
    for directory in map(Path, directories):
        if directory.name == "latest.txt":  # in outputs/<name>/*
            continue
        below = list(runs_below(directory))
        if not below:
            raise UserError(
                f"{directory}: contains no run and no sweep (it would have a config.yaml or a "
                "sweep.yaml); try a directory under outputs/"
            )
        found += below
    unique: dict[Path, Path] = {}
    for path in found:
        unique.setdefault(path.resolve(), path)
    found = list(unique.values())
    records = {d: read_record(d) for d in found if (d / "sweep.yaml").is_file()}
    if found == list(records) and len(found) == 1:
        (record,) = records.values()
        rows = sweep_rows(found[0], record)
        keys = record["varied"]
    else:
        rows = []
        for d in found:
            rows += sweep_rows(d, records[d], f"{d.name}/") if d in records else [run_row(d)]
        by_config = any(not row.command for row in rows)
        seeded = any("seed" in row.parameters for row in rows)
        for row in rows:
            if (path := row.directory / "config.yaml").exists():
                try:
                    config = plain_yaml(path)
                except UserError as error:
                    if len(rows) == 1:
                        raise
                    row.error = str(error)  # the table of the other runs is more useful
                    continue
                if seeded:  # also the default, which is in no command
                    row.parameters.setdefault("seed", str(config.get("seed")))
                if by_config:  # of all runs, also of commands, so that equal ones are averaged
                    kept = (item for item in files.flatten(config) if item[0] not in NOT_COMPARED)
                    row.parameters = {key: str(value) for key, value in kept}
                row.parameters = {"name": str(config.get("name")), **row.parameters}
        keys = list(dict.fromkeys(key for row in rows for key in row.parameters))
        keys = [key for key in keys if len({row.parameters.get(key) for row in rows}) > 1]
        keys = keys_of_configs(keys, rows) if by_config else keys
    if not rows:
        raise UserError(f"{found[0]}: has no job yet; try again when one has started")
    for row in rows:
        row.parameters = {key: row.parameters.get(key, "") for key in keys}
    goals = {(record["metric"], record["direction"]) for record in records.values()}
    return Table(rows, *(goals.pop() if len(goals) == 1 else ()))


def runs_below(directory: Path, above: Sequence[Path] = ()) -> Iterator[Path]:
    """The directories of sweeps, and of runs outside of sweeps; `above` are real paths around it.

    Links are followed, but not back to a folder above.
    """
    place = directory.resolve()
    if place in above:
        return
    if any((directory / name).is_file() for name in ("sweep.yaml", "config.yaml")):
        yield directory
    elif directory.is_dir():
        for inner in sorted(path for path in directory.iterdir() if path.is_dir()):
            yield from runs_below(inner, [*above, place])


def assignments(words: Sequence[str]) -> dict[str, str]:
    """Keys and values of the overrides in a command line."""
    pairs = [word.lstrip("+").split("=", 1) for word in words if "=" in word and word[0] != "-"]
    return dict(pairs)


def from_python(directory: Path) -> bool:
    """Whether a run was started by `train()`: the command is then that of a notebook or script."""
    commands = [start["command"] for start in read_starts(directory)]
    return any(not f"/{c[1]}".endswith(OURS) for c in commands if len(c) > 1)


def keys_of_configs(keys: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Those of the `keys` of configs that tell runs apart which their names do not.

    A config contains copies of values, such as `data.seed`; of equal columns, that with the
    shortest key is kept. Jobs that have no config yet are not compared.
    """
    found = [row.parameters for row in rows if "name" in row.parameters]
    names = [values["name"] for values in found]
    columns: dict[tuple, str] = {}
    for key in sorted(keys, key=len):
        columns.setdefault(tuple(values.get(key) for values in found), key)
    several = len(set(names))
    differ = [k for c, k in columns.items() if len(set(zip(names, c, strict=True))) > several]
    return ["name"] * (several > 1) + differ


def read_record(directory: Path) -> dict[str, Any]:
    """The content of a sweep's `sweep.yaml`; UserError for another file."""
    record = plain_yaml(directory / "sweep.yaml")
    jobs, others = record.get("jobs"), [record.get(name) for name in ("program", "varied")]
    lists = [*others, *(jobs if type(jobs) is list else [None])]
    texts = [record.get(name, "") for name in ("metric", "direction")]
    if not all(type(x) is list and all(type(word) is str for word in x) for x in [*lists, texts]):
        raise UserError(
            f"{directory / 'sweep.yaml'}: is not the record of a sweep; try another folder"
        )
    return {"metric": "error/val", "direction": "minimize"} | record


def plain_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping without interpolation; UserError for other content."""
    try:
        return files.read_yaml(path, most=500_000) | {}
    except Exception as error:  # a file from elsewhere can contain anything
        line = one_line(error)[:200]
        raise UserError(f"{path}: cannot be read ({line}); try another folder") from error


def sweep_rows(directory: Path, record: dict[str, Any], prefix: str = "") -> list[Row]:
    rows = []
    for number, words in enumerate(record["jobs"]):
        run = directory / str(number)
        words = with_changes(words, run)
        command = shlex.join([*record["program"], *words])
        rows.append(make_row(f"{prefix}{number}", assignments(words), run, command))
    return rows


def with_changes(words: Sequence[str], directory: Path) -> list[str]:
    """The words of a run's first start, with those of `trainer` that later starts have changed."""

    def key(word: str) -> str:
        return word.lstrip("+").partition("=")[0]

    later = [word for start in read_starts(directory)[1:] for word in start["command"]]
    changed = {key(word): word for word in later if key(word).startswith("trainer.")}
    return [*(word for word in words if key(word) not in changed), *changed.values()]


def run_row(directory: Path) -> Row:
    """The row of a single run, with the parameters of its command, if that is known."""
    words = with_changes(read_starts(directory)[0]["command"][1:], directory)
    words = [w for w in words if not w.startswith(OF_DIRECTORY)]
    words = [] if from_python(directory) else words
    command = shlex.join(["python", *words]) if words else ""  # unknown
    return make_row(directory.name, assignments(words), directory, command)


def make_row(name: str, parameters: dict[str, str], directory: Path, command: str) -> Row:
    result = read_result(directory)
    state = result.get("status", "unfinished" if directory.exists() else "waiting")
    if state not in ENDED_WELL:
        error = one_line(result.get("error", ""))[:300]
        return Row(name, parameters, directory, command, state, error, {})
    last = {f"last {metric}": value for metric, value in result.get("last", {}).items()}
    found = result.get("metrics", {}) | last | {"seconds": result.get("seconds")}
    # Finite ones; a whole number from elsewhere can have any length.
    values = {name: x for name, x in found.items() if type(x) in (int, float) and abs(x) < 1e300}
    return Row(name, parameters, directory, command, state, "", values)


def read_starts(directory: Path) -> list[dict[str, Any]]:
    """The entries of a run's `provenance.json`; one without content if there is no such file."""
    try:
        starts = files.read_json(directory / "provenance.json") or []
        found = [start | {"command": list(map(str, start["command"]))} for start in starts]
    except (AttributeError, KeyError, TypeError, ValueError):  # cut off, or from elsewhere
        found = []
    return found or [{"command": []}]


def read_result(directory: Path) -> dict[str, Any]:
    """A run's `result.json`, or an empty dict; results of version 0.1 are converted."""
    path = directory / "result.json"
    try:
        result = files.read_json(path) or {}
        result.get("metrics", {}).keys(), result.get("last", {}).keys()
        result and result["status"].strip()
    except (AttributeError, KeyError, OSError, RecursionError, ValueError):  # cut off, or foreign
        return {"status": "failed", "error": f"{path}: cannot be read"}
    old = result.get("metrics", {})
    if isinstance(old.get("val"), dict):
        flat = {f"{name}/{split}": value for split in old for name, value in old[split].items()}
        last = flat.pop("last_error/val", None)
        result |= {"metrics": flat, "last": {} if last is None else {"error/val": last}}
    return result


def read_metrics(directory: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The complete lines of `metrics.jsonl` from byte `offset` on, and the offset of their end."""
    path = directory / "metrics.jsonl"
    if not path.exists():
        return [], 0
    with open(path, "rb") as file:
        file.seek(offset if offset <= path.stat().st_size else 0)  # a resumed run may truncate it
        start, text = file.tell(), file.read()
    complete = text[: text.rfind(b"\n") + 1]
    lines = []
    for line in complete.splitlines():
        with suppress(ValueError):  # a line cut off when the run was killed
            found = json.loads(line)
            if isinstance(found, dict) and type(found.get("epoch")) is int:
                numbers = found.get("metrics")
                if isinstance(numbers, dict) and {*map(type, numbers.values())} <= {int, float}:
                    lines.append(found)
    return lines, start + len(complete)

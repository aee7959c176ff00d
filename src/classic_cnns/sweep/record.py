"""The sweep directory and its `sweep.yaml`, by which a sweep is continued unchanged."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from classic_cnns import UserError, assignment, program
from classic_cnns.files import make_folder
from classic_cnns.report import results
from classic_cnns.sweep.grid import Grid
from classic_cnns.sweep.search import Search
from classic_cnns.trainer.processes import try_lock


def new_record(
    words: Sequence[str],
    flags: Sequence[str],
    grid: Grid,
    search: Search | None,
    settings: DictConfig,
) -> dict[str, Any]:
    """The content of `sweep.yaml` without the jobs."""
    called = ["python", sys.argv[0]] if "train.py" in program() else [program()]
    kept = [word for word in words if not word.startswith("sweep.dir=")]
    kept.append(assignment("sweep.dir", settings.dir))
    varied = search.params if search else [o.get_key_element() for o in grid.varied]
    return {
        # The command that continues the sweep.
        "command": shlex.join([*called, *flags, "-m", *kept]),
        "program": [*called, *flags],
        "metric": settings.metric,
        "direction": settings.direction,
        "grid": grid.words,
        "search": search and [settings.metric, settings.direction, search.params],
        "varied": [key.lstrip("+") for key in varied],
    }


def open_directory(directory: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Create or open the directory and lock it; returns the record of an earlier start.

    Raises UserError if the directory belongs to another sweep.
    """
    kept = directory / "sweep.yaml"
    if not kept.exists() and any(directory.glob("[!.]*")):
        raise UserError(
            f"sweep.dir={directory}: contains no sweep (it would have a sweep.yaml); try "
            "another sweep.dir, or leave it out for a new one"
        )
    make_folder(directory, "sweep.dir")
    if try_lock(directory / ".lock") is None:  # held until this process ends
        raise UserError(
            f"sweep.dir={directory}: another process is running this sweep now; try "
            "again when it has ended, or another sweep.dir"
        )
    earlier = results.read_record(directory) if kept.exists() else {}
    if earlier and [type(earlier.get(name)) for name in ("grid", "command")] != [list, str]:
        raise UserError(f"{kept}: is not the record of a sweep; try another sweep.dir")
    if earlier and earlier["grid"] != record["grid"]:
        grid = shlex.join(map(str, earlier["grid"]))
        refuse(directory, f"its grid was {grid or 'empty'}", earlier)
    if earlier and earlier.get("search") != record["search"]:
        refuse(directory, search_before(earlier.get("search"), record["search"]), earlier)
    return earlier


def search_before(was: list[Any] | None, now: list[Any] | None) -> str:
    """What an earlier search had in place of the first thing that differs now."""
    if not was or not now:
        return "it was a search" if was else "it was no search"
    for name, before, today in zip(("metric", "direction"), was, now, strict=False):
        if before != today:
            return f"its sweep.{name} was {before}"
    key = next(key for key in [*was[2], *now[2]] if was[2].get(key) != now[2].get(key))
    if key not in was[2]:
        return f"its search did not have {key}"
    return f"its search had {key} with " + ", ".join(f"{end}={x}" for end, x in was[2][key].items())


def refuse(directory: Path, reason: str, earlier: dict[str, Any]) -> NoReturn:
    raise UserError(
        f"sweep.dir={directory}: {reason}; continue with: {earlier['command']}, or try another "
        "sweep.dir"
    )

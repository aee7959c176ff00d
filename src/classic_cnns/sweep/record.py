"""The sweep directory and its `sweep.yaml`, by which a sweep is continued unchanged."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from classic_cnns import UserError, program
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
    called = [name] if (name := program()) == "classic-cnns" else ["python", sys.argv[0]]
    kept = [word for word in words if not word.startswith("sweep.dir=")]
    varied = search.params if search else [o.get_key_element() for o in grid.varied]
    return {
        # The command that continues the sweep.
        "command": shlex.join([*called, *flags, "-m", *kept, f"sweep.dir={settings.dir}"]),
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
    for key in ("grid", "search"):
        if earlier and earlier.get(key) != record[key]:
            was = shlex.join(map(str, earlier.get(key) or ["none"]))
            refuse(directory, f"its {key} was {was}", earlier)
    return earlier


def refuse(directory: Path, reason: str, earlier: dict[str, Any]) -> NoReturn:
    raise UserError(
        f"sweep.dir={directory}: {reason}; continue with: {earlier['command']}, or try another "
        "sweep.dir"
    )

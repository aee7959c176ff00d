"""`python -m tests.bench [--rounds N] [PART ...]`: prints each row when it is measured."""

import argparse
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import torch

from classic_cnns.files import write_json
from classic_cnns.run.directory import processor
from tests.bench import HEAD, Row
from tests.bench.busy import busy
from tests.bench.ddp import ddp
from tests.bench.folders import folders
from tests.bench.images import images
from tests.bench.layers import layers
from tests.bench.lenet import epochs
from tests.bench.start import start
from tests.bench.steps import steps
from tests.bench.sweep import sweeps
from tests.bench.towers import towers
from tests.bench.use import use

# The maximum number of rounds: smaller where a round is long or rounds differ little.
PARTS: dict[str, tuple[Callable[[int], Iterable[Row]], int]] = {
    "start": (start, 3),
    "epochs": (epochs, 6),
    "layers": (layers, 5),
    "images": (images, 5),
    "folders": (folders, 3),
    "steps": (steps, 3),
    "ddp": (ddp, 3),
    "towers": (towers, 3),
    "busy": (busy, 2),
    "use": (use, 2),
    "sweeps": (sweeps, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="maximum for each row")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: must be one of {', '.join(PARTS)}")
    python, threads = platform.python_version(), torch.get_num_threads()
    machine = f"{processor()}, {threads} threads, Python {python}, torch {torch.__version__}"
    print(f"{machine}, medians of at most {given.rounds} rounds\n\n{HEAD}", flush=True)
    rows = []
    for part in given.parts or PARTS:
        measure, rounds = PARTS[part]
        for row in measure(min(rounds, given.rounds)):
            print(row, flush=True)
            rows.append(row)
    folder = Path("outputs/bench")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S}.json", [asdict(r) for r in rows])
    table = "\n".join([machine, "", HEAD, *map(str, rows)])
    (folder / "latest.md").write_text(f"{table}\n")


if __name__ == "__main__":
    main()

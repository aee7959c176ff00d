"""Sweeps of stand-ins for runs, in processes of their own."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

TRAIN = Path(__file__).parents[2] / "src" / "train.py"
STAND_IN = Path(__file__).parent / "stand_in.py"


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def sweep(tmp_path):
    """A function that calls `train.py -m` with stand-ins for runs, in a folder of its own."""
    (tmp_path / "fake" / "torch").mkdir(parents=True)
    broken = 'raise ImportError("a sweep by itself needs no torch")'
    (tmp_path / "fake" / "torch" / "__init__.py").write_text(broken)
    folder = tmp_path / "work"
    folder.mkdir()

    def start(*words: str, **environment: str) -> subprocess.Popen:
        epochs = [] if any("max_epochs=" in word for word in words) else ["trainer.max_epochs=3"]
        paths = [str(tmp_path / "fake"), str(TRAIN.parent), os.environ.get("PYTHONPATH", "")]
        return subprocess.Popen(
            [sys.executable, STAND_IN, "-m", *epochs, *words],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sweep(*words: str, **environment: str) -> Done:
        process = start(*words, **environment)
        out, err = process.communicate(timeout=100)
        return Done(process.returncode, out, err)

    sweep.start, sweep.folder = start, folder
    return sweep


def sheet(directory: Path) -> list[dict[str, str]]:
    with open(directory / "results.csv") as file:
        return list(csv.DictReader(file))

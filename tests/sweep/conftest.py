"""Sweeps of stand-ins for runs, in processes of their own."""

import csv
import json
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.forks import Process

STAND_IN = Path(__file__).parent / "stand_in.py"


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def sweep(server_without_torch, tmp_path):
    """A function that calls `train.py -m` with stand-ins for runs, in a folder of its own."""
    folder = tmp_path / "work"
    folder.mkdir()

    def start(*words: str, **env: str) -> Process:
        epochs = [] if any("max_epochs=" in word for word in words) else ["trainer.max_epochs=3"]
        return server_without_torch.start(STAND_IN, "-m", *epochs, *words, cwd=folder, env=env)

    def sweep(*words: str, **env: str) -> Done:
        process = start(*words, **env)
        out, err = process.communicate(timeout=100)
        return Done(process.returncode, out, err)

    sweep.start, sweep.folder = start, folder
    yield sweep
    server_without_torch.end()


def sheet(directory: Path) -> list[dict[str, str]]:
    with open(directory / "results.csv") as file:
        return list(csv.DictReader(file))


def starts(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "starts").read_text().splitlines()]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 150
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < deadline, path
        time.sleep(0.02)

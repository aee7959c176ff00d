"""Fixtures for sweeps of fake runs, in separate processes."""

import csv
import json
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.forks import Process

FAKE_TRAIN = Path(__file__).parent / "fake_train.py"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def sweep(server_without_torch, tmp_path):
    """A function that runs `fake_train.py -m` in a separate folder."""
    folder = tmp_path / "work"
    folder.mkdir()

    def start(*words: str, **env: str) -> Process:
        epochs = [] if any("max_epochs=" in word for word in words) else ["trainer.max_epochs=3"]
        return server_without_torch.start(FAKE_TRAIN, "-m", *epochs, *words, cwd=folder, env=env)

    def sweep(*words: str, **env: str) -> Outcome:
        process = start(*words, **env)
        out, err = process.communicate(timeout=100)
        return Outcome(process.returncode, out, err)

    sweep.start, sweep.folder = start, folder
    yield sweep
    server_without_torch.end()


def read_table(directory: Path) -> list[dict[str, str]]:
    with open(directory / "results.csv") as file:
        return list(csv.DictReader(file))


def read_starts(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "starts").read_text().splitlines()]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 150
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < deadline, path
        time.sleep(0.02)

"""A sweep of short jobs in parallel, compared with one job after the other, starts included."""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench import Row, row

TRAIN = Path(__file__).parents[2] / "src" / "train.py"


JOBS = 4


def seconds(*words: str) -> float:
    command = [sys.executable, str(TRAIN), "-m", f"seed=range({JOBS})", "trainer.max_epochs=1"]
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        overrides = [*words, f"sweep.dir={folder}/sweep"]
        subprocess.run([*command, *overrides], check=True, capture_output=True, cwd=folder)
        return time.perf_counter() - start


def sweeps(rounds: int) -> list[Row]:
    times = [(seconds(), seconds("sweep.parallel=1")) for _ in range(rounds)]
    names = ("in parallel", "one after the other")
    return [row(f"{JOBS} short LeNet-5 jobs", times, "<= 0.75", names)]

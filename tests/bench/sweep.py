"""Short jobs in parallel, beside one after the other; the start of each is counted."""

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
        words_here = [*words, f"sweep.dir={folder}/sweep"]
        subprocess.run([*command, *words_here], check=True, capture_output=True, cwd=folder)
        return time.perf_counter() - start


def sweeps(rounds: int) -> list[Row]:
    times = [(seconds(), seconds("sweep.parallel=1")) for _ in range(rounds)]
    names = ("in parallel", "one after the other")
    return [row(f"{JOBS} short LeNet-5 jobs", times, "<= 0.75", names)]

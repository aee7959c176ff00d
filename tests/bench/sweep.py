"""Short jobs in parallel, beside one after the other; the start of each is counted."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench import Row, compare

TRAIN = Path(__file__).parents[2] / "src" / "train.py"


def seconds(*words: str) -> Callable[[], float]:
    def measure() -> float:
        command = [sys.executable, str(TRAIN), "-m", "seed=range(8)", "trainer.max_epochs=1"]
        with TemporaryDirectory() as folder:
            start = time.perf_counter()
            words_here = [*words, f"sweep.dir={folder}/sweep"]
            subprocess.run([*command, *words_here], check=True, capture_output=True)
            return time.perf_counter() - start

    return measure


def sweeps(rounds: int) -> list[Row]:
    names = ("in parallel", "one after the other")
    ours, other = seconds(), seconds("sweep.parallel=1")
    return [compare("8 short LeNet-5 jobs", ours, other, "<= 0.75", names, rounds)]

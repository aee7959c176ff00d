"""From the command to the first training step, beside the bare imports of the libraries."""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench import Row, compare

ROOT = Path(__file__).parents[2]
IMPORTS = "import torch, lightning.pytorch, torchmetrics, tensorboard"


def first_step() -> float:
    """Seconds until the first step is done; then the run is ended."""
    with TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(ROOT / "tests/bench/until_first_step.py"),
            f"run_dir={folder}/run",
        ]
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return time.perf_counter() - start


def imports() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)
    return time.perf_counter() - start


def start(rounds: int) -> list[Row]:
    names = ("ours", "importing the libraries")
    return [compare("command to first step", first_step, imports, "<= 1.3", names, rounds)]

"""Time from the command to the first training step, compared with importing the libraries."""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench import Row, compare

HERE = Path(__file__).parent
END = "+callbacks.end._target_=until_first_step.End"  # found in the working directory
IMPORTS = "import torch, lightning.pytorch, torchmetrics, tensorboard"


def first_step() -> float:
    """Seconds until the first step is finished; the callback then ends the process."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE.parents[1] / "src" / "train.py"), END]
        start = time.perf_counter()
        words = [f"run_dir={folder}/run"]
        subprocess.run([*command, *words], cwd=HERE, check=True, capture_output=True)
        return time.perf_counter() - start


def imports() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)
    return time.perf_counter() - start


def start(rounds: int) -> list[Row]:
    names = ("ours", "importing the libraries")
    return [compare("command to first step", first_step, imports, "<= 1.3", names, rounds)]

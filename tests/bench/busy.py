"""Images per second of LeNet-5 runs on an idle machine, and on one that they share.

GNU OpenMP's threads spin while they wait for work, by default for 300,000 iterations. This is
fastest on an idle machine, but takes time from other processes on the same cores, so our command
limits it. All runs are real commands; they are compared with one run that is alone on the machine
and spins by GNU OpenMP's default.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

from tests.bench import Row, per_second, row

TRAIN = Path(__file__).parents[2] / "src" / "train.py"
# Very many short epochs: each writes a line with its speed.
WORDS = ["model=lenet5", "data=mnist", "optim.schedule_epochs=12", "trainer.max_epochs=10000"]
WORDS += ["+trainer.limit_train_batches=70", "+trainer.limit_val_batches=1"]
BUSY_LOOP = [sys.executable, "-c", "while True: pass"]
SECONDS = 6  # of measuring, after all runs have begun to train


def speed(runs: int = 1, loops: int = 0, **variables: str) -> float:
    """Mean images per second of `runs` runs at the same time, beside `loops` busy loops."""
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")  # the command sets these
    env = {key: value for key, value in os.environ.items() if key not in ours} | variables
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))

        def start(command: list[str]) -> subprocess.Popen:
            process = subprocess.Popen(
                command, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        def wait_until(condition: Callable[[], bool]) -> None:
            while not condition():
                time.sleep(0.05)
                for process in started:
                    if process.poll() is not None:
                        raise RuntimeError(f"a run ended with exit code {process.returncode}")

        for _ in range(loops):
            start(BUSY_LOOP)
        folders = [folder / str(number) for number in range(runs)]
        started = [start([sys.executable, str(TRAIN), *WORDS, f"run_dir={x}"]) for x in folders]
        wait_until(lambda: all(map(speeds_of, folders)))
        warm = [len(speeds_of(x)) for x in folders]
        end = time.monotonic() + SECONDS
        wait_until(lambda: time.monotonic() > end)
        wait_until(lambda: all(len(speeds_of(x)) > n for x, n in zip(folders, warm, strict=True)))
        return mean(median(speeds_of(x)[n:]) for x, n in zip(folders, warm, strict=True))


def speeds_of(directory: Path) -> list[float]:
    """Images per second of each finished epoch of a run."""
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    complete = [json.loads(line) for line in lines if line.endswith("\n")]
    return [line["metrics"]["speed/images_per_second"] for line in complete]


def busy(rounds: int) -> Iterable[Row]:
    speeds: list[list[float]] = []
    for _ in range(rounds):
        default = speed(GOMP_SPINCOUNT="300000")
        speeds.append([default, speed(), speed(runs=2), speed(loops=1)])
    rows = (("alone", ">= 0.9"), ("each of two", ">= 0.35"), ("beside a busy loop", ">= 0.35"))
    for number, (what, goal) in enumerate(rows, 1):
        times = [(1 / each[number], 1 / each[0]) for each in speeds]  # seconds per image
        names = (what, "alone, GOMP_SPINCOUNT=300000")
        yield per_second(row("LeNet-5 run", times, goal, names), 1, names)

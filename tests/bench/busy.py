"""Images per second of LeNet-5 runs that have the machine for themselves, and that share it.

GNU OpenMP's threads spin while they wait for work, by default 300,000 turns. Alone that is the
fastest; on cores that others use too, it takes from these what the waiting would leave them. The
runs are commands of their own, which do about it what they do by themselves; beside them stands
one alone on the machine with the default.
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
# Epochs without an end, short ones, of which each leaves a line with its speed.
WORDS = ["model=lenet5", "data=mnist", "optim.schedule_epochs=12", "trainer.max_epochs=10000"]
WORDS += ["+trainer.limit_train_batches=70", "+trainer.limit_val_batches=1"]
LOOP = [sys.executable, "-c", "while True: pass"]
SECONDS = 6  # of measuring, once all runs train


def speed(runs: int = 1, loops: int = 0, **variables: str) -> float:
    """Images per second of a run, the mean over `runs` at once, beside so many busy loops."""
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")  # the command's own business
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
            start(LOOP)
        places = [folder / str(number) for number in range(runs)]
        started = [start([sys.executable, str(TRAIN), *WORDS, f"run_dir={x}"]) for x in places]
        wait_until(lambda: all(map(speeds_of, places)))
        warm = [len(speeds_of(place)) for place in places]
        end = time.monotonic() + SECONDS
        wait_until(lambda: time.monotonic() > end)
        wait_until(lambda: all(len(speeds_of(x)) > n for x, n in zip(places, warm, strict=True)))
        return mean(median(speeds_of(x)[n:]) for x, n in zip(places, warm, strict=True))


def speeds_of(directory: Path) -> list[float]:
    """Images per second of each epoch of a run so far."""
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [line["metrics"]["speed/images_per_second"] for line in whole]


def busy(rounds: int) -> Iterable[Row]:
    speeds: list[list[float]] = []
    for _ in range(rounds):
        default = speed(GOMP_SPINCOUNT="300000")
        speeds.append([default, speed(), speed(runs=2), speed(loops=1)])
    rows = (("alone", ">= 0.9"), ("each of two at once", ">= 0.35"), ("beside a loop", ">= 0.35"))
    for number, (what, goal) in enumerate(rows, 1):
        times = [(1 / each[number], 1 / each[0]) for each in speeds]  # seconds an image
        names = (what, "alone, GOMP_SPINCOUNT=300000")
        yield per_second(row("LeNet-5 run", times, goal, names), 1, names)

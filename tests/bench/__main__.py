import argparse
import platform
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import torch
from classic_cnns.run_directory import processor

from classic_cnns.files import write_json
from tests.bench.ddp import ddp
from tests.bench.images import images
from tests.bench.layers import layers
from tests.bench.lenet import epochs
from tests.bench.start import start
from tests.bench.steps import steps
from tests.bench.sweep import sweeps
from tests.bench.towers import towers

parser = argparse.ArgumentParser(prog="make bench")
parser.add_argument("--rounds", type=int, default=5)
rounds = parser.parse_args().rounds

rows = [*start(rounds), *epochs(rounds), *layers(rounds), *images(rounds)]
rows += [*steps(rounds), *ddp(rounds), *towers(rounds), *sweeps(rounds)]
machine = f"{processor()}, {torch.get_num_threads()} threads, Python {platform.python_version()}"
lines = ["| | | | ratio | goal |", "|---|---|---|--:|--:|"]
lines += [f"| {r.what} | {r.ours} | {r.other} | {r.ratio:.2f} | {r.goal} |" for r in rows]
table = "\n".join([f"{machine}, torch {torch.__version__}, medians of {rounds}\n", *lines])
print(f"\n{table}")

folder = Path("outputs/bench")
folder.mkdir(parents=True, exist_ok=True)
write_json(folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S}.json", [asdict(r) for r in rows])
(folder / "latest.md").write_text(f"{table}\n")

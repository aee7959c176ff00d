"""Sweeps of jobs without torch: a stand-in for a run that counts, and keeps what a run keeps."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

TRAIN = Path(__file__).parents[2] / "src" / "train.py"

# Takes the place of classic_cnns.run in each job. Its error follows from lr and seed alone, it can
# be told to fail, and it goes on from its checkpoint, as a run does.
STAND_IN = """
import json, os, signal, sys, time, types
def run(config):
    from classic_cnns import run_directory
    from classic_cnns.files import read_json, write_json
    from omegaconf import OmegaConf
    directory = run_directory.find(config.resume) if config.resume else run_directory.create(config)
    config = OmegaConf.load(directory / "config.yaml")
    (directory / "checkpoints").mkdir(exist_ok=True)
    last = directory / "checkpoints" / "last.ckpt"
    state = read_json(last) or {"epoch": 0, "sum": 0.0}
    result = {"status": "interrupted", "error": "stopped", "directory": str(directory)}
    def stop(*_):
        write_json(directory / "result.json", result)
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    what = {0.5: "raise", 0.6: "kill", 0.7: "hang", 0.8: "diverge"}.get(config.optim.lr)
    with open(directory / "starts", "a") as file:
        names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "MASTER_ADDR",
                 "PL_GLOBAL_SEED", "WORLD_SIZE")
        start = {name: os.environ.get(name) for name in names}
        print(json.dumps(start | {"epoch": state["epoch"], "time": time.time()}), file=file)
    while state["epoch"] < config.trainer.max_epochs:
        time.sleep(float(os.environ.get("EPOCH_SECONDS", 0)))
        state["epoch"] += 1
        state["sum"] += config.optim.lr / (1 + config.seed + state["epoch"])
        write_json(last, state)
        print(f"epoch {state['epoch']:3}/{config.trainer.max_epochs}   loss  1.0000   error  9.00%"
              f" training {state['sum']:6.2%} validation   1,000 images/s", flush=True)
        if what == "raise": raise RuntimeError("first line\\nno memory is left")
        if what == "kill": os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang": time.sleep(600)
        if what == "diverge":
            write_json(directory / "result.json", result | {"status": "diverged", "error": "nan"})
            sys.exit(1)
    errors = {"error": state["sum"], "last_error": state["sum"] + 0.01}
    metrics = {"val": errors, "test": {"error": state["sum"] + 0.02}}
    write_json(directory / "result.json", result | {
        "status": "finished", "metrics": metrics, "seconds": 1.5, "error": ""})
    return state["sum"]
sys.modules["classic_cnns.run"] = types.ModuleType("classic_cnns.run")
sys.modules["classic_cnns.run"].run = run
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def sweep(tmp_path):
    """A function that calls `train.py -m` with stand-ins for runs, in a folder of its own."""
    (tmp_path / "stand_in" / "torch").mkdir(parents=True)
    broken = 'raise ImportError("a sweep by itself needs no torch")'
    (tmp_path / "stand_in" / "torch" / "__init__.py").write_text(broken)
    (tmp_path / "stand_in" / "sitecustomize.py").write_text(STAND_IN)
    folder = tmp_path / "work"
    folder.mkdir()

    def start(*words: str, **environment: str) -> subprocess.Popen:
        paths = f"{tmp_path / 'stand_in'}:{TRAIN.parent}"
        return subprocess.Popen(
            [sys.executable, TRAIN, "-m", *words, "trainer.max_epochs=3"],
            env=os.environ | {"PYTHONPATH": paths} | environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sweep(*words: str, **environment: str) -> Done:
        process = start(*words, **environment)
        out, err = process.communicate(timeout=100)
        return Done(process.returncode, out, err)

    sweep.start, sweep.folder = start, folder
    return sweep


def sheet(directory: Path) -> list[dict[str, str]]:
    with open(directory / "results.csv") as file:
        return list(csv.DictReader(file))

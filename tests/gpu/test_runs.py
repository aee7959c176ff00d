"""Whole runs on the GPU by the command line, compared with each other and with runs on the CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden import make_data, words
from tests.gpu import GPU, error, needs_cuda

pytestmark = pytest.mark.gpu

TRAIN = [sys.executable, str(Path(__file__).parents[2] / "src" / "train.py")]
EPOCHS, STEPS = 4, 20  # batches of 32 of the 160 images
ON_CPU = "trainer.accelerator=cpu"
ON_GPU = ON_CPU if GPU.type == "cpu" else "trainer.accelerator=gpu"
DETERMINISTIC = "trainer.deterministic=true"
DOUBLE = "trainer.precision=64-true"  # GPU and CPU then agree to many digits
STOPPING = "model.loss._target_=spy.Stopping"

# Losses: one records its device and dtype, the other sends SIGTERM in a training step.
SPY = """
import os, signal, torch
from classic_cnns.model.lenet5 import MAPLoss
class Recording(torch.nn.CrossEntropyLoss):
    def forward(self, scores, labels):
        with open("notes", "a") as notes:
            print(scores.device.type, scores.dtype, labels.device.type, file=notes)
        return super().forward(scores, labels)
class Stopping(MAPLoss):
    steps = 0
    def forward(self, scores, labels):
        self.steps += torch.is_grad_enabled()
        if self.steps == int(os.environ.get("STOP_IN_STEP", -1)) and torch.is_grad_enabled():
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(scores, labels)
"""


class Runs:
    """Runs in `folder` that run in parallel; `end` waits for one and checks its exit code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen] = {}
        make_data(folder)
        (folder / "spy.py").write_text(SPY)

    def start(self, name: str, *extra: str, recipe: str = "lenet5", **options) -> None:
        defaults = [word for word in words(recipe, self.folder) if word != ON_CPU]
        defaults += [f"run_dir={self.folder / name}", f"trainer.max_epochs={EPOCHS}"]
        self.call(name, *defaults, *extra, **options)

    def resume(self, name: str, *extra: str, **env: str) -> None:
        self.call(name, f"resume={self.folder / name}", "--trust", "spy", *extra, **env)

    def call(self, name: str, *extra: str, command=TRAIN, **env: str) -> None:
        given = {word.partition("=")[0]: word for word in extra}  # the last value of a key is used
        paths = [str(self.folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self.processes[name] = subprocess.Popen(
            [*command, "--config-dir", str(self.folder / "conf"), *given.values()],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, name: str, code: int = 0, status: str = "finished") -> None:
        process = self.processes[name]
        if not process.stdout.closed:
            output = process.communicate(timeout=200)[0]
            assert (process.returncode, self.status(name)) == (code, status), output

    def status(self, name: str) -> str:
        return json.loads((self.folder / name / "result.json").read_text())["status"]

    def last(self, name: str) -> dict:
        path = self.folder / name / "checkpoints" / "last.ckpt"
        return torch.load(path, map_location="cpu", weights_only=True)

    def weights(self, name: str) -> dict[str, Tensor]:
        return self.last(name)["state_dict"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """All runs that do not depend on others, started in parallel."""
    runs = Runs(tmp_path_factory.mktemp("runs"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    runs.start("one", ON_GPU, DETERMINISTIC)
    runs.start("again", ON_GPU, DETERMINISTIC)
    runs.start("stopped", ON_GPU, DETERMINISTIC, STOPPING, STOP_IN_STEP="8")
    runs.start("torchrun", ON_GPU, DETERMINISTIC, command=[*torchrun, TRAIN[1]])
    runs.start("nccl", ON_GPU, DETERMINISTIC, "trainer=ddp", "trainer.devices=1")
    runs.start("cpu", ON_CPU, DOUBLE)
    runs.start("gpu", ON_GPU, DOUBLE)
    runs.start("compiled", ON_GPU, DOUBLE, "trainer.compile=cudagraphs")
    runs.start("moved", ON_GPU, DOUBLE, STOPPING, STOP_IN_STEP="8")
    runs.start("noted", ON_GPU, "model.loss._target_=spy.Recording", recipe="alexnet_small")
    runs.start("towers", ON_GPU, DETERMINISTIC, recipe="alexnet_small")
    runs.start("same_towers", ON_GPU, DETERMINISTIC, recipe="alexnet_small")
    yield runs
    for process in runs.processes.values():
        process.kill()
        process.wait()
        process.stdout.close()


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The greatest relative error of a tensor."""
    assert one.keys() == other.keys()
    return max(error(one[name], other[name]) for name in one)


def test_gpu_and_cpu_give_almost_equal_weights(runs: Runs) -> None:
    runs.end("cpu")
    runs.end("gpu")
    weights = runs.weights("gpu")
    assert any(x.dtype == torch.float64 for x in weights.values())
    assert distance(weights, runs.weights("cpu")) < 1e-8


@needs_cuda
def test_cuda_graphs_give_the_weights_of_plain_steps(runs: Runs) -> None:
    runs.end("gpu")
    runs.end("compiled")
    assert distance(runs.weights("compiled"), runs.weights("gpu")) < 1e-8


@pytest.mark.parametrize(("one", "other"), [("one", "again"), ("towers", "same_towers")])
def test_the_same_seed_gives_equal_weights(one: str, other: str, runs: Runs) -> None:
    runs.end(one)
    runs.end(other)
    assert same_bits(runs.weights(one), runs.weights(other))


@pytest.mark.parametrize("other", ["torchrun", "nccl"])
def test_one_rank_gives_the_weights_of_a_run_without_ranks(other: str, runs: Runs) -> None:
    runs.end("one")
    runs.end(other)
    assert same_bits(runs.weights("one"), runs.weights(other))


def test_a_stopped_run_is_resumed_with_equal_weights(runs: Runs) -> None:
    runs.end("stopped", 143, "interrupted")
    assert runs.last("stopped")["global_step"] == 8
    runs.resume("stopped", ON_GPU)
    runs.end("stopped")
    runs.end("one")
    assert runs.last("one")["global_step"] == runs.last("stopped")["global_step"] == STEPS
    assert same_bits(runs.weights("one"), runs.weights("stopped"))


def test_a_run_is_resumed_on_the_cpu_and_again_on_the_gpu(runs: Runs) -> None:
    runs.end("moved", 143, "interrupted")
    assert runs.last("moved")["global_step"] == 8
    runs.resume("moved", ON_CPU, STOP_IN_STEP="5")
    runs.end("moved", 143, "interrupted")
    assert runs.last("moved")["global_step"] == 13
    runs.resume("moved", ON_GPU)
    runs.end("moved")
    runs.end("cpu")
    # With the precision of float32, in which a run in float64 loads its weights.
    assert distance(runs.weights("moved"), runs.weights("cpu")) < 1e-6


@needs_cuda
def test_precision_auto_is_bfloat16_on_gpus_that_support_it(runs: Runs) -> None:
    runs.end("noted")
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.bfloat16 if native else torch.float32
    check, *notes = (runs.folder / "notes").read_text().splitlines()
    assert check == "cpu torch.float32 cpu"  # of the loss, before training
    assert set(notes) == {f"cuda {dtype} cuda"} and len(notes) > STEPS
    assert {x.dtype for x in runs.weights("noted").values()} == {torch.float32}

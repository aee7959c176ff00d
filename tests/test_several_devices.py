"""Runs on two processes with gloo compared with one process; failing ranks and signals."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from classic_cnns.report.results import read_metrics
from classic_cnns.trainer.devices import free_port
from tests import golden
from tests.forks import SRC, TRAIN, Process, gone
from tests.runs import checkpoint, events, metrics, result

TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
pytestmark = pytest.mark.slow

TOWERS = ["trainer=two_gpu", "trainer.accelerator=cpu"]
SMALL = ["model=alexnet_small", "model.net.channels=[4,8,8,8,8]", "model.net.hidden=16"]
SMALL += ["model.net.weight_std=0.15", "trainer.precision=32-true"]

# A loss that fails as $FAILURE says, on rank 1 or the only process, in its 12th batch, which is in
# epoch 2 or in the second epoch after resuming.
FAILING_LOSS = """
import os, signal, warnings
import torch
from torch.nn.functional import cross_entropy
from classic_cnns.callbacks.stop import StopOnSignal
if os.environ.get("FAILURE") == "term":
    StopOnSignal.interval = 0.0  # steps are so fast that the epoch would end before
class Loss(torch.nn.Module):
    calls = 0
    def __init__(self, **_):
        super().__init__()
    def forward(self, scores, labels):
        self.calls += 1
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        mine = os.environ.get("RANK", "1") == "1" and self.calls == 12 and first
        failure = os.environ.get("FAILURE") if mine else ""
        if failure == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if failure == "term":
            os.kill(os.getppid(), signal.SIGTERM)  # the process that the user started
        if failure == "raise":
            warnings.warn("this is going wrong")
            raise RuntimeError("no luck")
        return cross_entropy(-scores, labels) * (float("nan") if failure == "nan" else 1)
"""


@pytest.fixture
def start(fork, spawn, tiny_mnist, tiny_config_dir, tmp_path):
    """A function that starts a run on the tiny data set in `tmp_path` and returns its process."""
    (tmp_path / "failing.py").write_text(FAILING_LOSS)

    def start(*words: str, command: Sequence[str] = (), **env: str) -> Process | subprocess.Popen:
        new = [word for word in words if word.startswith("resume=")] == []
        defaults = ["data=tiny", f"data_dir={tiny_mnist.folder}", "trainer=cpu"]
        # 8 batches: 7 of 73 images, an odd number, and the last of one image for two ranks.
        defaults += ["data.batch_size=73", "data.eval_batch_size=48", "trainer.log_every_n_steps=3"]
        defaults += ["trainer.max_epochs=3"]
        overridden = {word.partition("=")[0] for word in words}
        defaults = [word for word in defaults if word.partition("=")[0] not in overridden] * new
        words = ("--config-dir", str(tiny_config_dir), *defaults, *words)
        env |= {"PYTHONPATH": f"{tmp_path}:{SRC}", "OMP_NUM_THREADS": "1"}
        if not command:
            return fork(TRAIN, *words, cwd=tmp_path, env=env)
        return spawn([*command, TRAIN, *words], cwd=tmp_path, env=os.environ | env)

    return start


@pytest.fixture
def train(start):
    """The same, but waits for the end and returns exit code, output and errors."""

    def train(*words: str, **options) -> tuple[int, str, str]:
        process = start(*words, **options)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    return train


@pytest.fixture
def in_parallel(start):
    """A context manager that starts a run, and at its end waits until the run has succeeded."""

    @contextmanager
    def in_parallel(*words: str) -> Iterator[None]:
        process = start(*words)
        yield
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err

    return in_parallel


def difference(one: Path, other: Path, of: Callable = lambda state: state["state_dict"]) -> float:
    a, b = (of(checkpoint(path)) for path in (one, other))
    assert a.keys() == b.keys()
    return max((a[key] - b[key]).abs().max().item() for key in a)


def optimizer_state(checkpoint: dict) -> dict:
    (optimizer,) = checkpoint["optimizer_states"]
    states = optimizer["state"].items()
    return {(index, name): x for index, state in states for name, x in state.items()}


def confusion_matrices(directory: Path) -> list[bytes]:
    """The confusion matrices of all tests of the run."""
    tests = events(directory).Tensors("confusion/test/text_summary")
    return [test.tensor_proto.string_val[0] for test in tests]


def ranks(process: Process) -> list[int]:
    """The process ids of the ranks, in order."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return sorted(map(int, children.read_text().split()))


def wait_for_line(process: Process, words: str) -> None:
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(process.stderr.read())


UNEQUAL = """
import lightning.pytorch as pl
import torch


class Unequal(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(784, 10), torch.zeros(())

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])
        self.log("loss/train", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self):
        self.log("seen", self.trainer.strategy.reduce(self.seen + 1.0, reduce_op="sum"))

    def validation_step(self, batch, batch_idx):  # each rank has its own value
        better = self.global_rank == self.current_epoch % 2
        self.log("error/val", (0.1 if better else 0.9) / (1 + self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)
"""


def test_a_users_module_may_log_other_values_on_each_rank(train, tmp_path):
    """Neither a rank's own best epoch nor the progress bar makes it wait for the others."""
    (tmp_path / "unequal.py").write_text(UNEQUAL)
    words = ["run_dir=run", "callbacks=[default,early_stopping]"]
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "unequal.yaml").write_text("_target_: unequal.Unequal\n")
    code, _, err = train(*TWO, "--config-dir", str(tmp_path / "own"), "model=unequal", *words)
    assert code == 0, err
    assert result(tmp_path / "run")["status"] == "finished"


def test_two_processes_give_the_results_of_one(train, in_parallel, tmp_path):
    one = tmp_path / "one"
    with in_parallel("top5_error=true", f"run_dir={one}"):
        code, out, err = train(*TWO, "top5_error=true", "name=lenet5-tiny")
    assert (code, err) == (0, "")

    # One directory, one event file, and each line is printed once.
    runs = tmp_path / "outputs" / "lenet5-tiny"
    (two,) = [path for path in runs.iterdir() if path.is_dir()]
    assert (runs / "latest.txt").read_text() == f"{two.name}\n"
    assert len(list(two.glob("events.*"))) == 1
    assert re.findall(r"^epoch +(\d)/3", out, re.M) == ["1", "2", "3"]
    assert json.loads((two / "provenance.json").read_text())[0]["device"] == "2 x cpu"

    assert checkpoint(one)["global_step"] == checkpoint(two)["global_step"] == 24
    assert checkpoint(one).keys() == checkpoint(two).keys()
    assert 0 < difference(one, two) < 1e-6
    for name, value in metrics(one).items():
        assert metrics(two)[name] == pytest.approx(value, abs=1e-5)
    for split in ("train", "val", "test"):
        assert 0 < metrics(two)[f"top5_error/{split}"] < metrics(two)[f"error/{split}"]
    assert confusion_matrices(one) == confusion_matrices(two)

    # One process reads this checkpoint and gets exactly the same test metrics.
    test = {name: x for name, x in metrics(two).items() if name.endswith("/test")}
    (two / "result.json").unlink()
    assert train(f"resume={two}", "trainer.devices=1")[0] == 0
    assert len(test) == 4 and test.items() <= metrics(two).items()
    devices = [start["device"] for start in json.loads((two / "provenance.json").read_text())]
    assert devices == ["2 x cpu", "cpu"]


def test_two_processes_estimate_second_derivatives_together(train, in_parallel, tmp_path):
    words = ["optim=lenet5_1998", "data.batch_size=8", "trainer.max_epochs=2"]
    one, two = tmp_path / "one", tmp_path / "two"
    with in_parallel(*words, f"run_dir={one}"):
        code, _, err = train(*words, *TWO, f"run_dir={two}")
    assert (code, err) == (0, "")
    assert 0 < difference(one, two) < 1e-6
    assert difference(one, two, optimizer_state) < 1e-5  # of second derivatives


def test_ctrl_c_stops_all_ranks_and_the_run_is_resumed_on_one_device(
    start, train, in_parallel, tmp_path
):
    words = ["trainer.max_epochs=8", "data.batch_size=16"]
    stopped = tmp_path / "stopped"
    process = start(*TWO, *words, f"run_dir={stopped}")
    wait_for_line(process, "epoch   1/")
    pids = ranks(process)
    assert len(pids) == 2
    for pid in [process.pid, *pids]:
        if os.getpgid(pid) == os.getpgid(process.pid):  # like a terminal
            os.kill(pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "" and gone(pids)
    assert f"interrupted; continue with: python {TRAIN} resume={stopped}" in out
    assert result(stopped)["status"] == "interrupted"
    step = checkpoint(stopped)["global_step"]
    assert 32 < step < 8 * 32

    whole = tmp_path / "whole"
    with in_parallel(*words, f"run_dir={whole}"):
        assert train(f"resume={stopped}", "trainer.devices=1")[0] == 0
    assert result(stopped)["steps"] == result(whole)["steps"] == 8 * 32
    assert difference(stopped, whole) < 1e-3  # 256 steps amplify rounding errors


KILLED = {
    "two ranks": [*TWO, "trainer.max_epochs=10"],
    "two towers": [*TOWERS, *SMALL, "optim=alexnet_cifar10", "trainer.max_epochs=10"],
}


@pytest.mark.parametrize("devices", KILLED)
def test_a_killed_rank_ends_the_run_which_is_resumed_with_equal_weights(
    start, train, tmp_path, devices
):
    words = [*KILLED[devices], "callbacks.checkpoint.steps=3"]
    process = start(*words, "run_dir=run")
    wait_for_line(process, "epoch   2/")
    pids = ranks(process)
    time.sleep(random.random() / 5)
    start_time = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - start_time < 30 and gone(pids)
    assert process.returncode == 1
    (line,) = [line for line in err.splitlines() if "gloo" not in line.lower()]
    assert line.startswith("error: rank 1 was killed by SIGKILL")
    assert line.endswith(f"continue with: python {TRAIN} resume=run")
    run = tmp_path / "run"
    assert result(run)["status"] == "failed" and "rank 1 was killed" in result(run)["error"]
    assert checkpoint(run)["global_step"] >= 8
    assert train("resume=run")[0] == train(*words, "run_dir=whole")[0] == 0
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert difference(run, tmp_path / "whole") == 0
    assert difference(run, tmp_path / "whole", optimizer_state) == 0
    assert metrics(run) == metrics(tmp_path / "whole")


def test_an_error_in_a_rank_ends_the_run_and_its_warnings_are_printed(train, tmp_path):
    code, _, err = train(*TWO, "model.loss._target_=failing.Loss", "run_dir=run", FAILURE="raise")
    assert code == 1
    assert re.search(r"^rank 1: .*UserWarning: this is going wrong$", err, re.M)
    last = err.splitlines()[-1]
    assert last.startswith("error: rank 1: RuntimeError: no luck; continue with")
    assert err.count("Traceback") == 1
    assert result(tmp_path / "run")["error"] == "rank 1: RuntimeError: no luck"


def test_a_nan_loss_on_one_rank_ends_all_ranks(train, tmp_path):
    code, out, err = train(*TWO, "model.loss._target_=failing.Loss", "run_dir=run", FAILURE="nan")
    assert code == 1, out + err
    assert (
        len(re.findall(r"^error: the loss became nan in epoch \d; try a smaller", out, re.M)) == 1
    )
    assert result(tmp_path / "run")["status"] == "diverged"


def test_ranks_end_if_the_main_process_is_killed(start):
    process = start(*TWO, "trainer.max_epochs=500", "run_dir=run")
    wait_for_line(process, "epoch   1/")
    pids = ranks(process)
    process.kill()
    assert len(pids) == 2 and gone(pids)


def test_torchrun_on_two_nodes_killed_and_resumed_gives_the_results_of_one_process(
    start, train, in_parallel, tmp_path
):
    """On class folders: both nodes prepare the store, and each rank reads its part."""
    golden.make_data(tmp_path)
    one, run = tmp_path / "one", tmp_path / "run"
    words = ["data=image_folder", f"data.root={tmp_path / 'photos'}", f"data_dir={tmp_path}"]
    words += ["model=lenet5_relu", "model.input.fit=crop", "data.batch_size=4"]
    words += ["optim.schedule_epochs=12", "callbacks.checkpoint.steps=3"]
    resume = [f"resume={run}", "trainer.max_epochs=14"]

    def nodes(*overrides: str) -> list[subprocess.Popen]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1"]
        launcher += ["--nnodes=2", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
        commands = [[*launcher, f"--node-rank={rank}"] for rank in range(2)]
        return [start(*overrides, "trainer.num_nodes=2", command=command) for command in commands]

    with in_parallel(*words, "trainer.max_epochs=14", f"run_dir={one}"):
        killed = nodes(*words, "trainer.max_epochs=12", f"run_dir={run}")
        wait_for_line(killed[0], "epoch   2/")
        time.sleep(random.random() / 2)
        pids = [pid for node in killed for pid in (node.pid, *ranks(node))]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert len(pids) == 4 and all(node.wait(10) == -signal.SIGKILL for node in killed)
        assert 4 < checkpoint(run)["global_step"] < 12 * 4
    assert train(f"resume={run}", "trainer.num_nodes=1")[0] == 0
    again = nodes(*resume)
    outs = [node.communicate(timeout=120) for node in again]
    assert [node.returncode for node in again] == [0, 0], outs
    assert [len(re.findall("^epoch", out, re.M)) for out, _ in outs] == [2, 0]
    devices = [start["device"] for start in json.loads((run / "provenance.json").read_text())]
    assert devices == ["2 x cpu", "cpu", "2 x cpu"]
    assert len(list((tmp_path / "folders").rglob("store.json"))) == 1
    assert checkpoint(one)["global_step"] == checkpoint(run)["global_step"] == 14 * 4
    assert difference(one, run) < 1e-5


def test_ranks_that_torchrun_starts_again_continue_their_run(train, in_parallel, tmp_path):
    words = ["model.loss._target_=failing.Loss", "name=mine"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--max-restarts=1", "--rdzv-id=7", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:0"]
    # Otherwise a rank that starts early finds the address of a rank that was killed.
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "FAILURE": "kill"}  # in epoch 2
    with in_parallel(*words, "run_dir=one"):
        code, out, err = train(*words, *TWO, command=command, **env)
    assert code == 0, err
    (run,) = tmp_path.glob("outputs/mine/2*")
    assert f"this job was started again: continuing {run.relative_to(tmp_path)}\n" in out
    starts = json.loads((run / "provenance.json").read_text())
    assert [start["job"] for start in starts] == ["7", "7"]
    assert [line["epoch"] for line in read_metrics(run)[0]] == [1, 2, 3]
    assert difference(tmp_path / "one", run) < 1e-5


def test_towers_killed_or_stopped_are_resumed_anywhere_with_equal_results(
    train, in_parallel, tmp_path
):
    words = [*SMALL, "optim=alexnet_cifar10", "optim.lr=0.0002"]
    words += ["model.loss._target_=failing.Loss"]
    one, run, stopped = (tmp_path / name for name in ("one", "run", "stopped"))
    again = [f"resume={run}", "--trust", "failing"]
    with in_parallel(*words, f"run_dir={one}"):
        code, _, err = train(*words, *TOWERS, f"run_dir={run}", FAILURE="kill")  # in epoch 2
    assert code == 1 and "error: rank 1 was killed by SIGKILL" in err.splitlines()[-1]
    assert result(run)["status"] == "failed" and checkpoint(run)["global_step"] == 8
    code, _, err = train(*again, "trainer=cpu", FAILURE="raise")  # in epoch 3
    assert code == 1 and "no luck" in err and checkpoint(run)["global_step"] == 16
    assert train(*again, *TOWERS)[0] == 0
    devices = [start["device"] for start in json.loads((run / "provenance.json").read_text())]
    assert devices == ["2 x cpu", "cpu", "2 x cpu"]

    assert train(*words, *TOWERS, f"run_dir={stopped}", FAILURE="term")[0] == 143
    assert result(stopped)["status"] == "interrupted"
    assert 8 < checkpoint(stopped)["global_step"] < 16  # within epoch 2
    assert train(f"resume={stopped}", "--trust", "failing", *TOWERS)[0] == 0

    assert len(optimizer_state(checkpoint(one))) == 3 * 16  # of Adam, for each weight and bias
    for other in (run, stopped):
        assert checkpoint(one).keys() == checkpoint(other).keys()
        assert difference(one, other) < 1e-6 and difference(one, other, optimizer_state) < 1e-6
        for name, value in metrics(one).items():
            assert metrics(other)[name] == pytest.approx(value, abs=1e-6)
        images = [events(directory).Images("kernels/conv1")[0] for directory in (one, other)]
        assert images[0].encoded_image_string == images[1].encoded_image_string
        assert confusion_matrices(one) == confusion_matrices(other)
    tags = events(one).Tags()["scalars"]
    layers = [tag for tag in tags if tag.startswith(("dead/", "gradient/"))]
    assert len(layers) == 7 + 8
    for tag in layers:  # of whole layers, not of one tower
        (*_, expected), (*_, found) = (events(path).Scalars(tag) for path in (one, stopped))
        assert (found.step, found.value) == (expected.step, pytest.approx(expected.value, rel=1e-4))


def test_two_pairs_of_towers_share_batches_and_clip_the_norm_of_the_whole_gradient(
    train, in_parallel, tmp_path
):
    # Without dropout, which is random in each pair. The last batch has one image.
    words = [*SMALL, "model.net.dropout=0", "optim.clip_norm=0.5"]
    one, four = tmp_path / "one", tmp_path / "four"
    with in_parallel(*words, f"run_dir={one}"):
        code, _, err = train(*words, *TOWERS, "trainer.devices=4", f"run_dir={four}")
    assert (code, err) == (0, "")
    assert 0 < difference(one, four) < 1e-6
    for name, value in metrics(one).items():
        assert metrics(four)[name] == pytest.approx(value, abs=1e-6)


OWN_PARTS = ["--config-dir", str(Path(__file__).parent / "own_parts")]


def test_a_users_module_and_data_train_on_two_processes_and_in_a_sweep(fork, tmp_path):
    words = ["model=lit_classifier", "data=per_sample", "trainer.max_epochs=1", "trainer=ddp"]
    words += ["trainer.accelerator=cpu", "callbacks.checkpoint.monitor=val_acc"]
    words += ["callbacks.checkpoint.mode=max", "trainer.log_every_n_steps=1"]
    process = fork(TRAIN, *OWN_PARTS, *words, "run_dir=run", cwd=tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert result(tmp_path / "run")["steps"] == 4  # 64 images, in batches of 8, over 2 ranks
    sweep = ["-m", *OWN_PARTS, *words[:3], "callbacks.checkpoint.monitor=val_acc", "trainer=cpu"]
    sweep += ["callbacks.checkpoint.mode=max", "model.lr=0.1,0.01", "sweep.dir=sweep"]
    sweep += ["sweep.metric=val_acc", "sweep.direction=maximize"]
    process = fork(TRAIN, *sweep, cwd=tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    table = (tmp_path / "sweep" / "results.csv").read_text()
    assert "val_acc" in table.splitlines()[0] and table.count("finished") == 2

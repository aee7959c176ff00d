"""Whole runs on a tiny data set: files, repeatability, errors, resuming and TensorBoard."""

import csv
import ctypes
import errno
import fcntl
import gc
import json
import math
import os
import re
import signal
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer

import classic_cnns
from classic_cnns import UserError, load
from classic_cnns.callbacks.history import History
from classic_cnns.classifier import Classifier
from classic_cnns.config.compose import Composer, compose
from classic_cnns.config.stored import find_run
from classic_cnns.data.batches import Batches
from classic_cnns.logger.tensorboard import CHARTS, TensorBoard, hparams, hyperparameters
from classic_cnns.model.lenet5 import LeNet5, MAPLoss, MLELoss
from classic_cnns.report.results import read_metrics
from classic_cnns.run import directory as directories
from classic_cnns.run.build import build_parts
from classic_cnns.run.directory import make_unique
from classic_cnns.run.evaluate import evaluate
from classic_cnns.run.run import run
from classic_cnns.trainer.processes import report_no_locks, requeue, try_lock
from classic_cnns.trainer.spinning import Watch
from tests.runs import events, metrics, result, same, weights

pytestmark = pytest.mark.slow  # whole runs and processes


@pytest.fixture
def train(tiny_mnist, tiny_config_dir, tmp_path, monkeypatch):
    """A function that carries out a run of three epochs in `tmp_path` and returns its directory."""
    monkeypatch.chdir(tmp_path)
    # TensorBoard reads event files in the order of their names. Within one second these differ by a
    # counter of the process, where 10 comes before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))

    def train(name: str, *overrides: str) -> Path:
        if overrides and overrides[0].startswith("resume="):
            run(compose(*overrides))
            return tmp_path / name
        words = [
            "data=tiny",
            f"data_dir={tiny_mnist.folder}",
            "name=lenet5-tiny",
            "trainer.accelerator=cpu",
            "trainer.max_epochs=3",
            "data.batch_size=8",
            "trainer.log_every_n_steps=2",
            f"run_dir={name}",
        ]
        if not any("callbacks" in word for word in overrides):
            words.append("~callbacks.pictures")  # they take half of the time
        overridden = {word.partition("=")[0] for word in overrides}
        words = [word for word in words if word.partition("=")[0] not in overridden]
        run(compose(*words, *overrides, config_dirs=[str(tiny_config_dir)]))
        return tmp_path / name

    return train


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def whole(train, shared_folder) -> Path:
    """An uninterrupted run, made once for all tests."""
    if not (shared_folder / "whole").exists():
        train("whole").rename(shared_folder / "whole")
    return shared_folder / "whole"


def test_the_files_of_a_run(whole, tiny_mnist):
    assert {path.name for path in whole.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "provenance.json",
        "result.json",
        "train.log",
        *(path.name for path in whole.glob("events.out.tfevents.*")),
    }
    assert len(list(whole.glob("events.*"))) == 1
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    (start,) = json.loads((whole / "provenance.json").read_text())
    assert start["data"]["sha256"] == tiny_mnist.sums
    assert len(start["data"]["val_indices_sha256"]) == 64
    assert start["packages"]["torch"] == torch.__version__.split("+")[0]
    assert "60,000" in (whole / "train.log").read_text()
    outcome = result(whole)
    assert outcome["status"] == "finished"
    assert (outcome["epochs"], outcome["steps"]) == (3, 3 * 64)  # 512 images in batches of 8
    assert outcome["seconds"] > 0 and outcome["metrics"]["speed/images_per_second"] > 0


def test_the_test_error_is_that_of_the_best_checkpoint(whole, tiny_mnist):
    net = LeNet5()
    best = weights(whole, "best")
    net.load_state_dict({key.removeprefix("net."): value for key, value in best.items()})
    pixels = np.full((200, 1, 32, 32), -0.1, np.float32)
    pixels[:, 0, 2:30, 2:30] = tiny_mnist.arrays["test_images"] / 255 * 1.275 - 0.1
    wrong = net(torch.from_numpy(pixels)).argmax(1).numpy() != tiny_mnist.arrays["test_labels"]
    assert result(whole)["metrics"]["error/test"] == wrong.mean()
    assert wrong.mean() < 0.8  # guessing among ten classes gives 0.9


@pytest.mark.fact(
    "The test averages the softmax over the patches of an image",
    source="Krizhevsky 2012, section 4.1",
    code="classifier.py:average_softmax",
)
@pytest.mark.parametrize("which", ["nine", "ten"])
def test_the_test_averages_the_softmax_over_patches(train, tiny_mnist, which):
    directory = train(
        "a", "model=convnet_cifar10", "optim=lenet5_relu", "model.precision=32-true",
        "model.input={size: 24, fit: crop, low: -1, high: 1, subtract_mean: false}",
        f"data.test_patches={which}", "trainer.max_epochs=2",
    )  # fmt: skip
    net = instantiate(OmegaConf.load(directory / "config.yaml").model.net).eval()
    best = weights(directory, "best")
    net.load_state_dict({key.removeprefix("net."): value for key, value in best.items()})
    images = torch.from_numpy(tiny_mnist.arrays["test_images"] / 255 * 2 - 1).float()[:, None]
    patches = {
        "nine": [(top, left, False) for top in (0, 2, 4) for left in (0, 2, 4)],
        "ten": [
            (top, left, mirrored)
            for top, left in [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
            for mirrored in (False, True)
        ],
    }
    total = torch.zeros(200, 10)
    for top, left, mirrored in patches[which]:
        patch = images[:, :, top : top + 24, left : left + 24]
        with torch.no_grad():
            total += net(patch.flip(3) if mirrored else patch).softmax(1)
    mean, labels = total / len(patches[which]), torch.from_numpy(tiny_mnist.arrays["test_labels"])
    found = result(directory)["metrics"]
    assert found["error/test"] == (mean.argmax(1) != labels).double().mean().item()
    loss = -mean[torch.arange(200), labels.long()].log().mean().item()
    assert found["loss/test"] == pytest.approx(loss, rel=1e-4)
    with torch.no_grad():
        alone = net(images[:, :, 2:26, 2:26])
    assert found["error/test_centre"] == (alone.argmax(1) != labels).double().mean().item()
    assert f"test, centre{found['loss/test_centre']:11.4f}" in (directory / "train.log").read_text()


def test_only_the_same_seed_gives_equal_weights(train, whole):
    first = weights(whole)
    assert same(first, weights(train("b", "seed=0")))
    assert same(first, weights(train("c", "seed=0", "trainer.deterministic=true")))
    torch.use_deterministic_algorithms(False)
    for other in ("seed=1", "data.augment=none"):
        assert not same(first, weights(train(other[:4], other)))


def fail_in_epoch(monkeypatch, epoch: int) -> None:
    original = Classifier.on_train_epoch_start

    def failing(self):
        if self.current_epoch == epoch:
            raise RuntimeError("power failure")
        original(self)

    monkeypatch.setattr(Classifier, "on_train_epoch_start", failing)


def test_a_run_without_a_checkpoint_is_started_again_with_one_curve(train, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_validation_start", lambda self: 1 / 0)  # in the first epoch
        with pytest.raises(ZeroDivisionError):
            train("a", "trainer.max_epochs=1")
    assert events("a").Scalars("loss/train_step")
    train("unused", "resume=a")
    steps = [event.step for event in events("a").Scalars("loss/train_step")]
    assert steps == sorted(set(steps)) and len(steps) == 32


def test_a_failed_run_is_resumed_with_equal_results(train, whole, monkeypatch):
    with monkeypatch.context() as patch:
        fail_in_epoch(patch, 2)
        with pytest.raises(RuntimeError):
            train("broken")
    broken = Path("broken")
    assert result(broken)["status"] == "failed"
    assert "power failure" in result(broken)["error"]

    (broken / "checkpoints" / ".last.ckpt.7").touch()  # as after a kill while it was written
    train("unused", "resume=broken")
    assert not Path("unused").exists() and not list((broken / "checkpoints").glob(".*"))
    assert same(weights(broken), weights(whole))
    assert metrics(broken) == metrics(whole)
    assert len(json.loads((broken / "provenance.json").read_text())) == 2
    for tag in ("loss/train", "error/val", "optim/lr"):
        curve = [(e.step, e.value) for e in events(broken).Scalars(tag)]
        assert curve == [(e.step, e.value) for e in events(whole).Scalars(tag)]


def test_alexnets_rate_is_cut_when_the_error_stalls_also_after_resuming(train, monkeypatch):
    words = ["optim=alexnet", "optim.lr=1e-20", "optim.patience=1", "trainer.max_epochs=9"]
    words += ["data.batch_size=64"]
    with monkeypatch.context() as patch:
        fail_in_epoch(patch, 4)  # the first epoch without improvement after the first cut
        with pytest.raises(RuntimeError):
            train("a", *words)
    rates = {e.step: e.value for e in events(train("a", "resume=a")).Scalars("optim/lr")}
    of_epochs = [rates[8 * epoch + 7] for epoch in range(9)]
    # The errors are equal, so each second epoch after the first cuts the rate, three times.
    powers = [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert of_epochs == pytest.approx([1e-20 * 0.1**power for power in powers], rel=1e-6, abs=0)


@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (1, 20), (1, 62), (1, 63), (2, 63)])
def test_a_run_stopped_by_a_signal_at_any_step_is_resumed_with_equal_results(
    train, whole, monkeypatch, epoch, batch
):
    with monkeypatch.context() as patch:
        original = Classifier.training_step

        def signalled(self, images_and_labels, batch_idx):
            if (self.current_epoch, batch_idx) == (epoch, batch):
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, images_and_labels, batch_idx)

        patch.setattr(Classifier, "training_step", signalled)
        with pytest.raises(SystemExit) as stop:
            train("broken")
    assert stop.value.code == 143
    broken = Path("broken")
    assert result(broken)["status"] == "interrupted" and result(broken)["error"] == "SIGTERM"
    state = torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 64 * epoch + batch + 1

    train("unused", "resume=broken")
    assert same(weights(broken), weights(whole))
    assert metrics(broken) == metrics(whole)
    for tag in ("loss/train", "error/train", "error/val", "loss/train_step"):
        curve = [(e.step, e.value) for e in events(broken).Scalars(tag)]
        assert curve == [(e.step, e.value) for e in events(whole).Scalars(tag)]


def test_a_run_stopped_after_a_validation_within_an_epoch_keeps_its_metrics(train, monkeypatch):
    words = ["+trainer.val_check_interval=40", "trainer.max_epochs=2"]  # 40 of 64 batches
    whole = train("whole", *words)
    with monkeypatch.context() as patch:
        original = Classifier.training_step

        def signalled(self, batch, batch_idx):
            if (self.current_epoch, batch_idx) == (1, 50):
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, batch, batch_idx)

        patch.setattr(Classifier, "training_step", signalled)
        with pytest.raises(SystemExit):
            train("broken", *words)
    train("unused", "resume=broken")
    both = [
        [
            {name: x for name, x in line["metrics"].items() if not name.startswith("speed/")}
            for line in read_metrics(directory)[0]
        ]
        for directory in (Path("broken"), whole)
    ]
    assert both[0] == both[1] and all("error/val" in line for line in both[0])


def test_a_net_with_dropout_is_resumed_with_equal_weights(train, monkeypatch):
    original = LeNet5.forward

    def with_dropout(self, images):
        return original(self, torch.nn.functional.dropout(images, 0.2, self.training))

    monkeypatch.setattr(LeNet5, "forward", with_dropout)
    whole = train("whole")
    with monkeypatch.context() as patch:
        fail_in_epoch(patch, 1)
        with pytest.raises(RuntimeError):
            train("broken")
    torch.rand(1000)  # the state of the global generator differs in another process
    train("unused", "resume=broken")
    assert same(weights(Path("broken")), weights(whole))


def test_a_run_that_failed_before_its_first_checkpoint_starts_again(train, whole, monkeypatch):
    with monkeypatch.context() as patch:
        fail_in_epoch(patch, 0)
        with pytest.raises(RuntimeError):
            train("broken")
    train("unused", "resume=broken")
    assert same(weights(Path("broken")), weights(whole))


def test_a_job_whose_first_start_was_killed_at_once_is_started_again(train, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(directories, "write_provenance", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train("killed")
    Path("killed/result.json").unlink()
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    with pytest.raises(UserError, match="run_dir=killed: already contains a run"):
        train("killed")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train("killed")
    assert same(weights(Path("killed")), weights(whole))


def test_a_finished_run_is_not_trained_again(train, whole, caplog):
    before = (whole / "result.json").stat().st_mtime_ns
    caplog.clear()
    train("unused", f"resume={whole}")
    assert "has finished" in caplog.text
    assert (whole / "result.json").stat().st_mtime_ns == before


def test_a_nan_loss_stops_the_run_with_one_line(train, caplog, monkeypatch):
    original, calls = MAPLoss.forward, []

    def breaking(self, scores, labels):
        calls.append(1)
        return original(self, scores, labels) * (float("nan") if len(calls) > 100 else 1)

    monkeypatch.setattr(MAPLoss, "forward", breaking)
    train("a")
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert "the loss became nan in epoch 2" in line and "smaller optim.lr" in line
    assert result(Path("a"))["status"] == "diverged"
    assert all(value.isfinite().all() for value in weights(Path("a")).values())  # of epoch 1
    assert "The run so far: a" in line

    caplog.clear()
    train("b", "keep=false")
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert line.endswith("try a smaller optim.lr")  # no directory, since it is removed


class Wrong(torch.nn.Flatten):
    """A net of a user's that does not fit its inputs."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) @ torch.zeros(3, 4)


REFUSED = {
    "model=alexnet model.net.channels=[9,8,8,8,8]": "^model.net: .*divisible by groups",
    "model=alexnet model.net.image_size=100": "^model.net: .*leave the keys of model out",
    "model=alexnet model.net.in_channels=3": "^model.net: .*leave the keys of model out",
    "model=simple_cnn model.input.size=32": "^model.net: .*leave the keys of model out",
    "model=convnet_cifar10 model.net.layers=[{name: a, type: pool}]": "^model.net.layers: a has",
    "model=convnet_cifar10 model.net.layers=[{name: a, type: fc}]": "^model.net: .*outputs",
    "model=convnet_cifar10 optim=convnet_cifar10_13pct": "^optim.weight_decay: conv3, fc64",
    "optim=lenet5_relu_fast optim.scheduler.pct_start=2": "^optim: .*leave the keys of opt",
    "optim.optimizer._target_=torch.optim.Adam": "^optim: .*argument 'momentum'; leave",
    "model.loss._target_=torch.nn.CrosEntropyLoss": "^model.loss: .*CrosEntropyLoss.*leave",
    "+model.loss.reduction=none model=lenet5_relu": "^model.loss: gives a value for each image",
    "model=lenet5_relu model.loss._target_=torch.nn.BCEWithLogitsLoss": "^model.loss: Target size",
    "+model.net.hidden=3": "^model.net: .*unexpected keyword argument 'hidden'",
    "model=simple_cnn model.net.num_classes=7": "^model.net: gives 7 scores .* 10 classes; try",
    "model=simple_cnn model.net.num_classes=20": "^model.net: gives 20 scores .* 10 classes; try",
    "trainer.strategy={find_unused_parameters:true}": "^trainer: You selected an invalid strategy",
    "trainer.strategy=fdsp": "^trainer: You selected an invalid strategy name",
    "+trainer.profiler=simpel": "^trainer: .*profiler.*simple",
    "+trainer.enable_progress_bar=false": "^trainer: .*enable_progress_bar=False",
    "+callbacks.x._target_=nowhere.Thing": "^callbacks.x: .*nowhere",
    "+callbacks.x._target_=torch.nn.ReLU": "^callbacks.x._target_=torch.nn.ReLU: is no Callback",
    "+callbacks.x.patience=3": "^callbacks.x: needs a _target_",
    "+callbacks._target_=lightning.pytorch.callbacks.Timer": "^callbacks._target_=.*write a name",
    "model.net={_target_: tests.test_run.Wrong}": r"^model.net: .*shapes.*see .*test_run.py:\d+$",
    "callbacks.checkpoint.mode=lowest": "^callbacks.checkpoint: mode=lowest: must be min or max",
    "callbacks.checkpoint.monitor=error/vall": "error/vall: is not among the metrics; try one of l",
    "model=simple_cnn optim=lenet5_1998": "^optim.optimizer: .*alone, .*try model=lenet5",
    "optim=lenet5_1998 model.net.subsampling=max": "^optim.optimizer: .*with trainable sub",
}


def test_j_null_selects_the_loss_of_eq_8(train):
    directory = train("a", "model.loss.j=null", "trainer.max_epochs=1")
    assert isinstance(instantiate(OmegaConf.load(directory / "config.yaml").model.loss), MLELoss)


@pytest.mark.parametrize("words", REFUSED)
def test_parts_that_cannot_be_built_are_reported_before_a_directory_is_made(train, words):
    with pytest.raises(UserError, match=REFUSED[words]) as refusal:
        train("a", *re.split(r" (?=[\w.]+=)", words), "model.input.fit=resize")
    assert "\n" not in str(refusal.value) and not Path("a").exists()


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_runs_of_a_few_steps_have_a_schedule(train, steps):
    words = ["optim=simple_cnn", "trainer.max_epochs=1", f"+trainer.limit_train_batches={steps}"]
    words.append("trainer.log_every_n_steps=1")
    found = result(train("few", *words))
    assert (found["status"], found["steps"]) == ("finished", steps)


def test_two_runs_of_one_second_get_two_directories_and_latest_is_the_second(train):
    train("null")
    train("null")
    first, second = sorted(p for p in Path("outputs/lenet5-tiny").iterdir() if p.is_dir())
    assert Path("outputs/lenet5-tiny/latest.txt").read_text().strip() == second.name
    assert find_run("outputs/lenet5-tiny/latest") == second
    assert metrics(first) == metrics(second)


def test_latest_is_the_run_before_if_a_new_one_is_removed(train):
    words = ["null", "trainer.max_epochs=1"]
    monitor = ["callbacks=[default,learning_rate_monitor]", "logger=null"]  # needs a logger
    with pytest.raises(UserError, match="LearningRateMonitor"):
        train(*words, *monitor)
    assert not Path("outputs").exists()
    train(*words)
    kept = find_run("outputs/lenet5-tiny/latest")
    with pytest.raises(UserError, match="LearningRateMonitor"):
        train(*words, *monitor)
    assert find_run("outputs/lenet5-tiny/latest") == kept


def test_a_run_cannot_be_resumed_with_fewer_epochs_and_keeps_its_config(train, monkeypatch):
    end = History.on_train_epoch_end

    def fail(self, trainer, pl_module):
        end(self, trainer, pl_module)
        if trainer.current_epoch == 2:
            raise RuntimeError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_end", fail)
        with pytest.raises(RuntimeError, match="no luck"):
            train("a")
    with pytest.raises(UserError, match="max_epochs=1: .* has done 2 epochs already; try .*=4"):
        train("a", "resume=a", "trainer.max_epochs=1")
    assert OmegaConf.load("a/config.yaml").trainer.max_epochs == 3
    (Path("a") / "result.json").write_text('{"stat')  # cut off
    (Path("a") / "provenance.json").write_text("[")
    train("a", "resume=a")
    assert result(Path("a"))["status"] == "finished"


def test_a_run_without_checkpoints_is_not_resumed(train):
    train("a", "callbacks=null", "trainer.max_epochs=1")
    with pytest.raises(UserError, match="resume=a: has no last.ckpt"):
        train("a", "resume=a", "trainer.max_epochs=2")
    assert result(Path("a"))["epochs"] == 1


def test_a_run_that_is_being_trained_is_not_resumed(train):
    train("a", "trainer.max_epochs=1")
    lock = try_lock(Path("a/train.log"))
    with pytest.raises(UserError, match="resume=a: is being trained by another process"):
        train("a", "resume=a", "trainer.max_epochs=2")
    os.close(lock)
    train("a", "resume=a", "trainer.max_epochs=2")
    assert result(Path("a"))["epochs"] == 2


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_reported_once(train, number, monkeypatch, caplog):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    train("a", "trainer.max_epochs=1")  # and caches the data
    monkeypatch.setattr(fcntl, "flock", flock)
    report_no_locks.cache_clear()
    train("b", "trainer.max_epochs=1")
    train("a", "resume=a", "trainer.max_epochs=2")
    assert result(Path("a"))["epochs"] == 2
    assert sum("the file system has no locks" in line for line in caplog.messages) == 1


def test_a_job_that_slurm_does_not_start_again_is_reported(monkeypatch, caplog):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("PATH", "")  # without scontrol
    requeue()
    assert "SLURM does not start this job again" in caplog.text


def test_runs_that_start_in_the_same_second_have_different_directories(tmp_path):
    names = [make_unique(tmp_path / "now").name for _ in range(3)]
    assert names == ["now", "now-2", "now-3"]


def test_a_callback_that_is_null_in_a_file_is_left_out(tmp_path):
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "fewer.yaml").write_text("pictures: null\n")
    config = compose("callbacks=[default,fewer]", config_dirs=[str(tmp_path)])
    parts = build_parts(config, "callbacks", Callback)
    assert [type(part).__name__ for part in parts] == ["Progress", "BestAndLast", "Activations"]


def test_a_run_that_reached_its_steps_is_continued_for_more(train, caplog):
    train("a", "+trainer.max_steps=70")
    assert result(Path("a"))["steps"] == 70
    train("a", "resume=a", "trainer.max_epochs=9")  # max_steps ends it
    assert "a has finished; +trainer.max_steps=<more> continues it" in caplog.text
    train("a", "resume=a", "+trainer.max_steps=90")
    assert result(Path("a"))["steps"] == 90


def test_a_finished_run_names_the_limit_that_ended_it(train, caplog):
    train("a", "trainer.max_epochs=1", "+trainer.max_time=00:01:00:00")
    train("a", "resume=a")
    assert "a has finished; trainer.max_epochs=<more> continues it" in caplog.text
    path = Path("a/result.json")
    path.write_text(json.dumps(result(Path("a")) | {"epochs": 0}))  # as if it were out of time
    train("a", "resume=a")
    assert "a has finished; +trainer.max_time=<more> continues it" in caplog.text


def test_a_run_that_cannot_be_resumed_does_not_propose_it(train, caplog, monkeypatch):
    def interrupt(*_) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Classifier, "on_test_epoch_start", interrupt)
    for words in ((), ("~callbacks.checkpoint",)):
        with pytest.raises(SystemExit):
            train("a" * (1 + len(words)), "trainer.max_epochs=1", *words)
    interrupted = [text for text in caplog.messages if text.startswith("interrupted")]
    assert interrupted == [
        "interrupted; continue with: python src/train.py resume=a",
        "interrupted",
    ]


def test_another_number_of_threads_is_reported_when_a_run_is_resumed(train, caplog):
    train("a", "trainer.max_epochs=1")
    path = Path("a/provenance.json")
    start = json.loads(path.read_text())[0]
    train("a", "resume=a", "trainer.max_epochs=2")
    assert "threads" not in caplog.text
    path.write_text(json.dumps([start | {"threads": 7}]))
    train("a", "resume=a", "trainer.max_epochs=3")
    line = f"the number of threads was 7 when this run was started and is {torch.get_num_threads()}"
    line += " now, which changes the last digits of results; OMP_NUM_THREADS=7 avoids this"
    assert line in caplog.text


def test_the_weights_of_latest_are_those_of_a_run_that_stays_the_same(train):
    train("null", "trainer.max_epochs=1", "name=mine")
    train("null", "trainer.max_epochs=1", "name=mine", "init_from=outputs/mine/latest")
    first, second = sorted(Path("outputs/mine").glob("2*"))
    assert OmegaConf.load(second / "config.yaml").init_from == str(first)


def test_a_path_may_begin_with_the_home_directory(train, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    train("'~/runs/a'", "trainer.max_epochs=1")
    train("a", "resume='~/runs/a'", "trainer.max_epochs=2")
    assert result(tmp_path / "runs" / "a")["epochs"] == 2
    assert load("~/runs/a").classes


def test_the_averaged_weights_are_saved_and_tested(train):
    directory = train("a", "callbacks=[default,swa]", "optim.scheduler=null")
    averaged, last = weights(directory, "swa"), weights(directory)
    assert not same(averaged, last) and same(load("a").state_dict(), averaged)
    found = run_evaluation("a")
    assert found["error/test"] == result(directory)["metrics"]["error/test"]
    of_val = evaluate(*Composer().load_run("a"), "val").metrics
    assert of_val.items() <= result(directory)["metrics"].items()


def test_from_python_a_diverged_run_is_a_result(train, whole, monkeypatch):
    monkeypatch.setattr(MAPLoss, "forward", lambda self, scores, labels: scores.sum() * math.nan)
    config = OmegaConf.load(whole / "config.yaml")
    config.run_dir = "a"
    found = classic_cnns.train(config)
    assert found["status"] == "diverged" and found["directory"] == "a"


def test_a_resumed_run_keeps_the_rows_of_its_csv_file(train):
    def rows(directory: Path) -> list[tuple[str, str]]:
        with open(directory / "csv" / "metrics.csv", newline="") as file:
            found = list(csv.DictReader(file))
        return [(row["step"], row["loss/train_step"], row["error/val"]) for row in found]

    words = ["logger=csv", "model=lenet5_relu"]  # its rate is constant
    train("a", *words, "trainer.max_epochs=1")
    train("a", "resume=a", "trainer.max_epochs=2")
    assert rows(Path("a")) == rows(train("b", *words, "trainer.max_epochs=2"))
    Path("a/csv/metrics.csv").write_text("step\nlast")
    with pytest.raises(UserError, match="a/csv/metrics.csv: is not the file of an earlier start"):
        train("a", "resume=a", "trainer.max_epochs=3")


def test_the_home_folder_is_expanded(train, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    train("'~/a'", "trainer.max_epochs=1")
    assert (tmp_path / "a" / "result.json").exists() and not Path("~").exists()


def test_schedulers_without_total_steps_are_stepped_after_each_epoch(train):
    scheduler = "{_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 2}"
    optimizer = (
        "{_target_: torch.optim.Adam, _partial_: true, lr: 0.01}"  # replaces SGD's arguments
    )
    words = [f"optim.scheduler={scheduler}", f"optim.optimizer={optimizer}"]
    run_of_three = train("a", *words, "trainer.log_every_n_steps=32")
    rates = {event.step + 1: event.value for event in events(run_of_three).Scalars("optim/lr")}
    middles = [rates[64 * epoch + 32] for epoch in range(3)]
    assert middles == pytest.approx([0.01, 0.01, 0.001])


def test_the_logged_rate_is_the_one_that_the_step_was_computed_with(train):
    words = [
        "optim.scheduler={_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 1}",  # noqa: E501
        "callbacks=[default,learning_rate_monitor]",
    ]
    path = train("a", *words, "optim.lr=0.01") / "metrics.jsonl"
    lines = [json.loads(line)["metrics"] for line in path.read_text().splitlines()]
    for name in ("optim/lr", "lr-SGD"):  # Lightning logs it in float32
        assert [line[name] for line in lines] == pytest.approx([0.01, 0.001, 0.0001], rel=1e-6)


def test_values_that_lightning_refuses_are_reported_with_their_key(train):
    with pytest.raises(UserError, match="trainer.val_check_interval: .*must be less than"):
        train("a", "+trainer.val_check_interval=1000")
    assert not Path("a").exists()


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_net_of_any_precision_is_loaded_in_float32(train, precision, tiny_mnist):
    train("a", f"trainer.precision={precision}", "trainer.max_epochs=1")
    net = load("a")
    assert {weight.dtype for weight in net.parameters()} == {torch.float32}
    found = result(Path("a"))["metrics"]
    for split in ("train", "val", "test"):  # not rounded to the precision of the net
        assert found[f"error/{split}"] + found[f"accuracy/{split}"] == pytest.approx(1, abs=1e-12)
    assert round(found["error/test"] * len(tiny_mnist.arrays["test_labels"]), 9).is_integer()
    assert net.predict(np.zeros((2, 28, 28, 1), np.uint8)) == 2 * net.predict(
        np.zeros((28, 28), np.uint8)
    )


def run_evaluation(path: str) -> dict[str, float]:
    return evaluate(*Composer().load_run(path), "test").metrics


def test_a_directory_with_a_run_is_not_overwritten(train, whole):
    with pytest.raises(UserError, match="whole: already contains a run; try resume=.*whole"):
        train(str(whole))


def test_a_full_disk_is_reported_in_one_line_and_keeps_the_last_checkpoint(
    train, whole, monkeypatch
):
    real, calls = os.fsync, []

    def full_at_the_third_checkpoint(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        calls.append(name)
        if sum(".ckpt" in name for name in calls) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_at_the_third_checkpoint)
        with pytest.raises(UserError, match="No space left on device; make room.*resume=a"):
            train("a")
    left = sorted(path.name for path in Path("a/checkpoints").iterdir())
    assert left == ["best.ckpt", "last.ckpt"]
    train("unused", "resume=a")
    assert same(weights(Path("a")), weights(whole))


def test_the_share_of_time_that_steps_wait_for_data(train, monkeypatch, caplog):
    read = Batches.read

    def slow_read(self, shares):
        for part in read(self, shares):
            time.sleep(0.3)  # once per epoch: it reads up to 1,024 images, and an epoch has 512
            yield part

    monkeypatch.setattr(Batches, "read", slow_read)
    found = result(train("a", "trainer.max_epochs=1"))
    wait, seconds = found["metrics"]["speed/data_wait"], found["seconds"]
    assert 0.3 < wait * seconds < seconds - 0.05
    assert f"{wait:.1%} of the time waiting for data" in Path("a/train.log").read_text()


class ResourceUse(Callback):
    """Records memory in MB, open files and threads of this process after each epoch."""

    records: ClassVar[list[tuple[float, int, int]]] = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        # What is free but not returned to the system varies by 10 MB, and hides what is in use.
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        counts = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
        self.records.append((pages * os.sysconf("SC_PAGE_SIZE") / 1e6, *counts))


def test_memory_files_and_threads_do_not_grow_over_300_epochs(train):
    gc.collect()  # closes what earlier tests have left open
    words = ["+trainer.limit_train_batches=2", "trainer.max_epochs=300", "data.batch_size=32"]
    train("run", *words, "+callbacks.resource_use._target_=tests.test_run.ResourceUse")
    assert len(ResourceUse.records) == 300
    # Medians, because TensorBoard opens its file for each write. Over 1,000 epochs a run of its
    # own grew by 0.1 MB.
    early, late = (
        np.median(ResourceUse.records[part], 0) for part in (slice(50, 100), slice(250, 300))
    )
    assert late[0] - early[0] < 2 and np.array_equal(late[1:], early[1:])


# --- Estimates -----------------------------------------------------------------------------------


def test_an_estimate_is_logged_for_long_runs_only(train, caplog):
    def estimates() -> list[str]:
        return [r.getMessage() for r in caplog.records if "estimate: " in r.getMessage()]

    train("a", "trainer.max_epochs=1")
    assert not estimates()
    with pytest.raises(SystemExit) as end:
        train("null", "estimate=true", "trainer.max_epochs=1000")
    assert end.value.code == 0
    (line,) = estimates()
    form = r"estimate: ([\d,]+) images/s, ([\d.]+) s for an epoch of training, ([\d:]+) for 1000 "
    form += r"epochs, ([\d.]+) MB for checkpoints"
    speed, epoch, whole, space = re.fullmatch(form, line).groups()
    speed, epoch = float(speed.replace(",", "")), float(epoch)
    rounding = 0.05  # of the seconds, which have one digit after the point
    assert speed * epoch == pytest.approx(512, abs=rounding * speed + epoch)
    hours, minutes, seconds = map(int, whole.split(":"))
    duration = 3600 * hours + 60 * minutes + seconds
    assert duration == pytest.approx(1000 * epoch, abs=1000 * rounding + 1)
    size = sum(path.stat().st_size for path in Path("a/checkpoints").iterdir())
    assert float(space) * 1e6 == pytest.approx(size, rel=0.2)
    limits = {
        "+trainer.max_steps=150": "for 100 more steps",  # after the 50 that were measured
        "+trainer.max_time=00:09:00:00": "for the rest of max_time",
    }
    for word, part in limits.items():
        with pytest.raises(SystemExit):
            train("null", "estimate=true", "trainer.max_epochs=10000000", word)
        assert part in estimates()[-1] and "10000000" not in estimates()[-1]
    # An epoch of fewer than 50 steps, without a validation at its end.
    words = ["+trainer.limit_train_batches=20", "+trainer.limit_val_batches=0"]
    with pytest.raises(SystemExit) as end:
        train("null", "estimate=true", *words)
    assert end.value.code == 0 and len(estimates()) == 2 + len(limits)
    assert not Path("outputs").exists()


# --- TensorBoard ---------------------------------------------------------------------------------


def test_tensorboard_has_the_curves_of_each_epoch_texts_and_images(train):
    log = events(train("a", "callbacks=default"))
    scalars = log.Tags()["scalars"]
    tags = {tag for tag in scalars if not tag.startswith(("saturated/", "gradient/"))}
    squashed = {"C1", "S2", "C3", "S4", "C5", "F6"}
    assert {f"saturated/{layer}" for layer in squashed} <= set(scalars) - tags
    splits = {f"{m}/{s}" for m in ("loss", "error", "accuracy") for s in ("train", "val", "test")}
    assert tags == splits | {
        "best/error/val", "best/loss/val", "loss/train_step", "optim/lr",
        "speed/images_per_second", "speed/data_wait",
        "epoch",  # Lightning adds it
    }  # fmt: skip
    assert [e.step for e in log.Scalars("loss/train")] == [63, 127, 191]  # as Lightning counts
    assert [e.step for e in log.Scalars("error/val")] == [63, 127, 191]
    assert [e.step for e in log.Scalars("error/test")] == [192]
    texts = {
        tag: log.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in log.Tags()["tensors"]
        if tag.endswith("text_summary")
    }
    assert "340,908" in texts["layers/text_summary"]
    assert "max_epochs: 3" in texts["config/text_summary"]
    inputs = {"inputs/before augmentation", "inputs/after augmentation"}
    # Without mistakes/test, because all test images are classified correctly.
    shown = {"kernels/C1", "kernels/C3", "kernels/C5", "confusion/test"}
    assert set(log.Tags()["images"]) == inputs | shown
    assert len(log.Images("kernels/C1")) == 4  # at the start and after each epoch


def test_event_files_are_in_the_run_directory_or_in_the_folder_of_earlier_versions(tmp_path):
    (tmp_path / "earlier" / "tensorboard").mkdir(parents=True)
    for name in ("new", "earlier"):
        logger = TensorBoard(tmp_path / name)
        logger.experiment.add_scalar("a", 1, 1)
        logger.close()
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Runs()
    assert sorted(runs) == ["earlier/tensorboard", "new"]


@pytest.mark.parametrize("model", ["lenet5", "convnet_cifar10_13pct"])
def test_tensorboard_has_the_confusion_matrix_and_the_mistakes(train, tiny_arrays, model):
    words = ["data.test_patches=nine"] if model != "lenet5" else []
    directory = train("a", "callbacks=default", f"model={model}", "trainer.max_epochs=1", *words)
    log, labels = events(directory), tiny_arrays["test_labels"]
    text = log.Tensors("confusion/test/text_summary")[0].tensor_proto.string_val[0].decode()
    table = [[cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines()]
    counts = np.array([[int(cell) for cell in row] for row in table[2:]])
    assert table[0] == [f"-> {number}" for number in range(10)]
    assert counts.sum(1).tolist() == np.bincount(labels, minlength=10).tolist()
    wrong = len(labels) - counts.trace()
    assert wrong / len(labels) == pytest.approx(result(directory)["metrics"]["error/test"])
    assert wrong > 0
    (image,) = log.Images("mistakes/test")
    assert image.height == 28 + min(-(-wrong // 12), 10) * (64 + 28)


@pytest.mark.parametrize("top5", [False, True])
def test_the_custom_scalars_tab_shows_every_metric_and_has_no_empty_chart(top5):
    module = Classifier(torch.nn.Linear(1, 1), MLELoss(), lambda _: None, top5=top5)
    names = {*module.metric_names, *(f"{name}/test" for name in module.test_metrics.means)}
    assert len(names) == 3 * (4 if top5 else 3)
    shown = set()
    for chart, (_, patterns) in CHARTS["metrics"].items():
        matching = {name for name in names for x in patterns if re.search(x, name)}
        assert {name.partition("/")[2] for name in matching} == {"train", "val", "test"}, chart
        shown |= matching
    assert shown == names


def test_the_hparams_tab_has_metrics_with_values_and_the_same_keys_in_every_run(train, whole):
    rows = []
    for directory in (whole, train("b", "optim.lr=0.001", "data.augment=none")):
        log = events(directory)
        plugin = {
            tag: HParamsPluginData.FromString(content)
            for tag, content in log._plugin_to_tag_to_content["hparams"].items()
        }
        experiment = plugin["_hparams_/experiment"].experiment
        metrics = {info.name.tag for info in experiment.metric_infos}
        assert metrics <= set(log.Tags()["scalars"])  # each has a value
        errors = [line["metrics"]["error/val"] for line in read_metrics(directory)[0]]
        (best,) = log.Scalars("best/error/val")  # of the checkpoint that was tested
        assert best.value == pytest.approx(min(errors)) and "best/error/val" in metrics
        assert "hp_metric" not in log.Tags()["scalars"]
        start = plugin["_hparams_/session_start_info"].session_start_info
        assert "_hparams_/session_end_info" in plugin
        rows.append((metrics, dict(start.hparams)))
    (metrics, first), (others, second) = rows
    assert metrics == others and first.keys() == second.keys()
    assert (first["optim.lr"].number_value, second["optim.lr"].number_value) == (0.02, 0.001)
    assert second["data.augment"].string_value == "none"


def test_hyperparameters_that_are_lists_are_shown_as_text():
    config = {"varied": [], "name": "a", "data": {"augment": ["flip", "crop"]}, "seed": 1}
    values = hyperparameters(OmegaConf.create(config))
    assert values["data.augment"] == "['flip', 'crop']" and values["seed"] == 1.0
    hparams(values, {})  # accepts them


class Advice(Callback):
    """Records whether the run may log the advice about bfloat16."""

    due: ClassVar[list[bool]] = []

    def on_train_start(self, trainer, pl_module) -> None:
        self.due.append(Watch.bfloat16)


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_a_run_uses_the_given_precision(train, precision):
    words = ["model=simple_cnn", "optim.lr=0.01", "optim.clip_norm=5.0"]
    words.append("+callbacks.advice._target_=tests.test_run.Advice")
    directory = train("a", f"trainer.precision={precision}", *words)
    kinds = {x.dtype for x in weights(directory).values() if x.is_floating_point()}
    assert kinds == {torch.float64 if precision == "64-true" else torch.float32}
    (start,) = json.loads((directory / "provenance.json").read_text())
    assert start["precision"] == precision
    assert Advice.due.pop() == (precision == "bf16-mixed") and not Watch.bfloat16
    assert result(directory)["metrics"]["error/val"] < 0.5


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_second_derivatives_are_estimated_in_the_precision_of_the_net(train, precision):
    words = ["optim=lenet5_1998", "trainer.max_epochs=1", "+trainer.limit_train_batches=3"]
    directory = train("a", *words, f"trainer.precision={precision}")
    (state,) = torch.load("a/checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
    kinds = {values["curvature"].dtype for values in state["state"].values()}
    assert kinds == {torch.float64 if precision == "64-true" else torch.bfloat16}
    assert result(directory)["status"] == "finished"


def test_channels_last_stores_and_computes_the_net_in_that_memory_format(train):
    words = ["model=lenet5_relu", "optim.lr=0.01", "trainer.max_epochs=1"]  # without dropout
    runs = [train(f"net_{x}", f"trainer.channels_last={x}", *words) for x in ("true", "false")]
    nets = [weights(run) for run in runs]
    name = next(name for name, x in nets[0].items() if x.dim() == 4 and x.shape[1] > 1)
    last, first = (net[name].is_contiguous(memory_format=torch.channels_last) for net in nets)
    assert last and not first
    for (name, ours), (_, other) in zip(nets[0].items(), nets[1].items(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-6, msg=name)

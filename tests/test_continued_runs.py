"""Runs with unusual limits and callbacks, stopped and continued: equal to an uninterrupted run."""

import json
import os
import signal
from itertools import count
from math import ceil
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback, Timer

from classic_cnns import UserError
from classic_cnns.callbacks.stop import StopOnSignal
from classic_cnns.classifier import Classifier
from classic_cnns.config.compose import compose
from classic_cnns.run import run as api
from tests.runs import checkpoint, same, weights

pytestmark = pytest.mark.slow  # whole runs

STEPS = 16  # per epoch: 512 images in batches of 32


@pytest.fixture
def train(train):
    """The usual function, with other defaults."""

    def train_with_defaults(*words: str) -> dict:
        defaults = ["logger=csv", "trainer.max_epochs=3", "trainer.log_every_n_steps=1"]
        if not any("callbacks=" in word for word in words):
            defaults += ["~callbacks.activations"]
        if not any(word.startswith("model=") for word in words):
            defaults += ["model=lenet5_relu", "optim.lr=0.05"]
        if any(word.startswith("resume=") for word in words):
            defaults = []
        given = {word.partition("=")[0] for word in words}
        return train(*(word for word in defaults if word.partition("=")[0] not in given), *words)

    return train_with_defaults


@pytest.fixture
def stop_and_continue(train, monkeypatch):
    """A function: makes an uninterrupted run `a`, and a run `b` that is stopped and continued.

    A signal, or with `error` an exception, ends `b` after so many batches.
    """

    def stop_and_continue(batches: int, *words: str, error: bool = False) -> None:
        numbers, on_train_batch_end = count(1), StopOnSignal.on_train_batch_end

        def end(self, *rest) -> None:
            is_last = next(numbers) == batches
            if is_last and error:
                raise RuntimeError("crash")
            if is_last:
                os.kill(os.getpid(), signal.SIGINT)
            on_train_batch_end(self, *rest)

        train("run_dir=a", *words)
        with monkeypatch.context() as patch:
            patch.setattr(StopOnSignal, "on_train_batch_end", end)
            with pytest.raises(RuntimeError if error else KeyboardInterrupt):
                train("run_dir=b", *words)
        train("resume=b")

    return stop_and_continue


def lines(directory: str) -> list[dict]:
    """The epochs of metrics.jsonl without what depends on time."""
    found = map(json.loads, (Path(directory) / "metrics.jsonl").read_text().splitlines())
    return [
        {
            "epoch": line["epoch"],
            "step": line["step"],
            **{k: v for k, v in line["metrics"].items() if not k.startswith("speed")},
        }
        for line in found
    ]


def check_equal(one: str = "a", other: str = "b") -> None:
    assert same(weights(one), weights(other)) and lines(one) == lines(other)


LIMITS = {  # name: words of both runs, of the short one, and of its continuation
    "max_steps at the end of an epoch": (
        ["+trainer.max_steps=40"], ["+trainer.max_steps=16"], ["+trainer.max_steps=40"],
    ),
    "max_steps within an epoch": (
        ["+trainer.max_steps=40"], ["+trainer.max_steps=21"], ["+trainer.max_steps=40"],
    ),
    "max_steps, and no longer": ([], ["+trainer.max_steps=21"], ["+trainer.max_steps=-1"]),
    "limit_train_batches": (
        ["+trainer.limit_train_batches=5"], ["trainer.max_epochs=1"], ["trainer.max_epochs=3"],
    ),
    "limit_train_batches and max_steps": (
        ["+trainer.limit_train_batches=5", "+trainer.max_steps=15"], ["+trainer.max_steps=5"],
        ["+trainer.max_steps=15"],
    ),
    "overfit_batches": (
        ["+trainer.overfit_batches=3"], ["trainer.max_epochs=1"], ["trainer.max_epochs=3"],
    ),
    "plateau schedule of a user's module": (
        ["model=lit_classifier", "data=per_sample", "trainer.max_epochs=4"],
        ["trainer.max_epochs=2"], ["trainer.max_epochs=4"],
    ),
    "a user's DataLoader, created for each epoch": (
        ["model=lit_classifier", "data=per_sample", "+trainer.reload_dataloaders_every_n_epochs=1"],
        ["trainer.max_epochs=1"], ["trainer.max_epochs=3"],
    ),
    "a user's DataLoader, created for every second epoch": (
        ["model=lit_classifier", "data=per_sample", "+trainer.reload_dataloaders_every_n_epochs=2"],
        ["trainer.max_epochs=1"], ["trainer.max_epochs=3"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_a_run_that_reached_its_limit_is_continued(train, name):
    words, short, more = LIMITS[name]
    train("run_dir=a", *words)
    keys = {word.partition("=")[0] for word in short}
    train("run_dir=b", *(word for word in words if word.partition("=")[0] not in keys), *short)
    train("resume=b", *more)
    check_equal()


@pytest.mark.parametrize(
    "word",
    [
        "trainer.accumulate_grad_batches=16",
        "+trainer.limit_train_batches=1",
        "+trainer.val_check_interval=1",
    ],
)
def test_a_run_that_cannot_stop_within_an_epoch_stops_after_it(train, monkeypatch, word):
    on_train_batch_end = StopOnSignal.on_train_batch_end

    def end(self, trainer, *rest) -> None:
        if trainer.current_epoch == 1 and not self.number:
            os.kill(os.getpid(), signal.SIGINT)
        on_train_batch_end(self, trainer, *rest)

    train("run_dir=a", word)
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_train_batch_end", end)
        with pytest.raises(KeyboardInterrupt):
            train("run_dir=b", word)
    assert [line["epoch"] for line in lines("b")] == [1, 2]
    train("resume=b")
    check_equal()


def test_a_run_that_stopped_early_and_failed_in_its_test_trains_no_more(train, monkeypatch):
    words = ["callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=1"]
    words += ["optim.lr=0.5", "optim.scheduler=null", "trainer.max_epochs=30"]

    def fail(*_) -> None:
        raise RuntimeError("crash")

    done = train("run_dir=a", *words)
    assert done["epochs"] < 30
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_test_start", fail)
        with pytest.raises(RuntimeError):
            train("run_dir=b", *words)
    again = train("resume=b")
    check_equal()
    assert again["epochs"] == done["epochs"] and again["steps"] == done["steps"]
    assert train("resume=b", "trainer.max_epochs=31")["epochs"] > done["epochs"]


def test_a_run_that_a_callback_ended_is_not_trained_on_after_a_failure(train, monkeypatch):
    words = ["callbacks=[default,early_stopping]", "callbacks.early_stopping.stopping_threshold=9"]
    words[1] = f"+{words[1]}"

    def fail(*_) -> None:
        raise RuntimeError("crash")

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_test_start", fail)
        with pytest.raises(RuntimeError):
            train("run_dir=b", *words)
    assert train("resume=b")["epochs"] == 1


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_line_of_an_epoch_is_written_if_the_run_was_killed_before(train, epochs):
    train("run_dir=a")
    train("run_dir=b", f"trainer.max_epochs={epochs}")
    path = Path("b/metrics.jsonl")
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    (Path("b") / "result.json").unlink()
    train("resume=b")
    assert path.read_text() == whole
    path.unlink()
    train("resume=b", "trainer.max_epochs=3")
    assert lines("b") == lines("a")[epochs - 1 :]


def test_averaged_weights_are_tested_after_a_failure_in_the_test(train, monkeypatch):
    words = ["callbacks=[default,swa]", "optim.scheduler=null", "trainer.max_epochs=4"]

    def fail(*_) -> None:
        raise RuntimeError("crash")

    done = train("run_dir=a", *words)
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_test_start", fail)
        with pytest.raises(RuntimeError):
            train("run_dir=b", *words)
    again = train("resume=b")
    assert same(weights("a", "swa"), weights("b", "swa"))
    assert not same(weights("a", "swa"), weights("a"))
    assert again["metrics"]["error/test"] == done["metrics"]["error/test"]
    # For the statistics of batch normalisation Lightning adds an epoch, with the averaged weights.
    assert train("run_dir=c", *words, "model.net.norm=torch")["epochs"] == 5
    assert same(weights("c", "swa"), weights("c"))


def test_a_run_that_stopped_within_an_epoch_is_continued_from_there(train):
    words = ["callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=1"]
    words += ["optim.lr=1e-9", "optim.scheduler=null", "+trainer.val_check_interval=6"]
    done = train("run_dir=a", *words)
    assert checkpoint(Path("a"))["global_step"] == done["steps"] < STEPS
    assert train("resume=a", "trainer.max_epochs=4")["steps"] > done["steps"]


def test_a_run_that_early_stopping_ends_uses_the_accumulated_gradients(train):
    words = ["optim.scheduler=null", "trainer.accumulate_grad_batches=4"]
    stopping = ["callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=1",
                "+callbacks.early_stopping.min_delta=2.0"]  # fmt: skip
    done = train("run_dir=a", *words, *stopping, "+trainer.val_check_interval=5")
    loop = checkpoint(Path("a"))["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert loop["current"]["completed"] == 4 * done["steps"] < STEPS
    train("run_dir=b", *words, f"+trainer.max_steps={done['steps']}")
    assert done["steps"] == 3 and same(weights("a"), weights("b"))


def test_a_run_that_was_out_of_time_is_continued_within_the_epoch(train, monkeypatch):
    train("run_dir=a")
    with monkeypatch.context() as patch:
        clock = count()
        patch.setattr(Timer, "time_elapsed", lambda self, stage=None: float(next(clock)))
        train("run_dir=b", "+trainer.max_time=00:00:00:21")
    assert 0 < checkpoint(Path("b"))["global_step"] % STEPS
    train("resume=b", "+trainer.max_time=00:01:00:00")
    check_equal()


def test_a_run_that_is_out_of_time_ends_after_an_optimizer_step(train, monkeypatch):
    words = ["trainer.accumulate_grad_batches=4"]
    train("run_dir=a", *words)
    with monkeypatch.context() as patch:
        clock = count()
        patch.setattr(Timer, "time_elapsed", lambda self, stage=None: float(next(clock)))
        train("run_dir=b", "+trainer.max_time=00:00:00:21", *words)
    assert checkpoint(Path("b"))["global_step"] % ceil(STEPS / 4) != 0
    train("resume=b", "+trainer.max_time=00:01:00:00")
    check_equal()


CALLBACKS = {  # words, and the batch in an epoch after which the run is stopped
    "swa": (["callbacks=[default,swa]", "~callbacks.pictures", "callbacks.swa.swa_epoch_start=2",
             "trainer.max_epochs=5"], 3 * STEPS + 5),
    "accumulation": (["+callbacks.a={_target_:lightning.pytorch.callbacks."
                      "GradientAccumulationScheduler,scheduling:{0:2,2:4}}"], 2 * STEPS + 4),
    "reload": (["+trainer.reload_dataloaders_every_n_epochs=1"], STEPS + 5),
    "plateau within the epoch": (["optim=alexnet", "optim.lr=1e-9", "optim.patience=0",
                                  "+trainer.val_check_interval=6"], STEPS + 14),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_run_stopped_within_an_epoch_keeps_the_state_of_its_callbacks(stop_and_continue, name):
    words, batches = CALLBACKS[name]
    stop_and_continue(batches, *words)
    check_equal()


def test_a_run_with_max_steps_that_was_killed_does_not_skip_an_epoch(stop_and_continue):
    words = ["+trainer.max_steps=48", "trainer.max_epochs=-1", "optim.scheduler=null"]
    stop_and_continue(STEPS + 3, *words, error=True)
    check_equal()


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no")
def test_loggers_of_a_module_with_two_optimizers_have_each_row_once(stop_and_continue):
    stop_and_continue(STEPS + 3, "model=gan", "trainer.max_epochs=2", error=True)
    one, other = (Path(name).rglob("metrics.csv") for name in "ab")
    assert next(one).read_text().count("\n") == next(other).read_text().count("\n")


@pytest.mark.parametrize("finder", ["BatchSizeFinder", "LearningRateFinder"])
def test_what_a_finder_has_found_is_kept(train, finder):
    target = f"_target_:lightning.pytorch.callbacks.{finder}"
    words = ["model=lit_classifier", "data=per_sample"]
    arguments = "num_training_steps:20,attr_name:lr"
    if finder == "BatchSizeFinder":
        words, arguments = [], "init_val:32,max_trials:2,steps_per_trial:1"
    train("run_dir=a", *words, f"+callbacks.f={{{target},{arguments}}}", "trainer.max_epochs=1")
    first = lines("a")
    train("resume=a", "trainer.max_epochs=2")
    assert [line["epoch"] for line in lines("a")] == [1, 2] and lines("a")[:1] == first
    if finder == "BatchSizeFinder":
        config = yaml.safe_load(Path("a/config.yaml").read_text())
        assert config["data"]["batch_size"] == 64
        assert [line["step"] for line in lines("a")] == [8, 16]


class Fails(Callback):
    """Fails where it is told to."""

    hook = "on_train_epoch_start"

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if Fails.hook == "on_train_epoch_start" and trainer.current_epoch == 1:
            raise RuntimeError("a mistake")

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        if Fails.hook == "on_test_epoch_end":
            raise UserError("a mistake")


FAILS = "+callbacks.fails._target_=tests.test_continued_runs.Fails"


def test_an_error_as_an_epoch_starts_keeps_the_metrics_of_the_one_before(train, monkeypatch):
    train("run_dir=a")
    with pytest.raises(RuntimeError, match="a mistake"):
        train("run_dir=b", FAILS)
    monkeypatch.setattr(Fails, "hook", "")
    api.train(compose("resume=b", trust=["tests"]))
    check_equal()


def test_a_mistake_after_training_keeps_the_run(train, monkeypatch):
    monkeypatch.setattr(Fails, "hook", "on_test_epoch_end")
    with pytest.raises(UserError, match="a mistake"):
        train("run_dir=a", "~callbacks.checkpoint", FAILS, "trainer.max_epochs=1")
    assert len(lines("a")) == 1


def test_a_run_that_failed_in_its_test_is_resumed_to_be_tested(train, monkeypatch):
    whole = train("run_dir=a", "+trainer.max_steps=32")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Classifier, "test_step", lambda *_: 1 / 0)
        train("run_dir=b", "+trainer.max_steps=32")
    again = train("resume=b")
    assert whole["epochs"] == again["epochs"] == 2 and whole["steps"] == again["steps"] == 32
    assert whole["metrics"]["error/test"] == again["metrics"]["error/test"]


def test_early_stopping_within_an_epoch_logs_its_training_metrics(train):
    train("run_dir=a", "callbacks=[default,early_stopping]", "~callbacks.pictures",
          "callbacks.early_stopping.patience=2", "optim.lr=1e-9", "+trainer.val_check_interval=6",
          "trainer.max_epochs=5")  # fmt: skip
    assert all({"error/train", "error/val"} <= line.keys() for line in lines("a"))


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no")
def test_what_checkpoints_cannot_contain_is_left_out_or_reported_at_once(train):
    words = ["run_dir=a", "model=with_hyperparameters", "data=per_sample", "trainer.max_epochs=1"]
    words.append("logger=null")
    train(*words)
    assert torch.load("a/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"] == {
        "hidden": [32]
    }
    train("resume=a", "trainer.max_epochs=2")
    with pytest.raises(
        UserError, match="b/checkpoints/last.ckpt: cannot be written, since a module"
    ):
        train("run_dir=b", *words[1:], "model.odd=true")
    assert not Path("b").exists()


def test_lightnings_checkpoints_alone_are_tested_and_announced(train, caplog):
    words = ["callbacks=model_checkpoint", "+callbacks.model_checkpoint.save_last=true"]
    train("run_dir=a", *words)
    assert "without callbacks=default this run cannot be resumed" in caplog.messages
    assert not any("no checkpoint is written" in text for text in caplog.messages)


def test_two_runs_at_once_in_one_process_are_refused(train):
    with api.TRAINING, pytest.raises(UserError, match="another run is training in this process"):
        train("run_dir=a")
    assert train("run_dir=a", "trainer.max_epochs=1")["status"] == "finished"

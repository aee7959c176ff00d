"""What users of Lightning and Hydra expect: it works, or one line says why not."""

import contextlib
import csv
import inspect
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import ReadonlyConfigError

import classic_cnns
from classic_cnns import UserError
from classic_cnns.callbacks import progress
from classic_cnns.classifier import Classifier
from classic_cnns.config.compose import READ, Composer, compose
from classic_cnns.config.schema import RESERVED, trainer_arguments
from classic_cnns.report import curves, summary
from classic_cnns.report.log import show_log
from classic_cnns.report.results import read_table
from classic_cnns.run import run as api
from classic_cnns.run.build import build, build_trainer, line_of_user
from classic_cnns.run.evaluate import evaluate
from classic_cnns.trainer.devices import device_count
from tests.conftest import OWN_PARTS
from tests.runs import events, same, weights

pytestmark = pytest.mark.slow  # whole runs and processes

STEPS = 16  # per epoch: 512 images in batches of 32


def hook_counter():
    """The HookCounter of the last run."""
    return sys.modules["hook_counter"].HookCounter.last


# --- The Trainer's arguments ----------------------------------------------------------------------

# An override of each argument, and a check of its effect with the HookCounter and the result.
EFFECTS = {
    "accelerator": (
        "trainer.accelerator=cpu", lambda w, r: w.trainer.strategy.root_device.type == "cpu"
    ),
    "fast_dev_run": ("+trainer.fast_dev_run=2", lambda w, r: w.calls["on_train_batch_end"] == 2),
    "max_epochs": ("trainer.max_epochs=1", lambda w, r: r["epochs"] == 1),
    "min_epochs": (
        "+trainer.min_epochs=2 +trainer.max_time=00:00:00:00",
        lambda w, r: w.calls["on_train_batch_end"] == 2 * STEPS,
    ),
    "max_steps": ("+trainer.max_steps=5", lambda w, r: r["steps"] == 5),
    "min_steps": (
        "+trainer.min_steps=4 +trainer.max_time=00:00:00:00", lambda w, r: r["steps"] >= 4
    ),
    "max_time": ("+trainer.max_time=00:00:00:00", lambda w, r: r["steps"] < 4),
    "limit_train_batches": ("+trainer.limit_train_batches=3", lambda w, r: r["steps"] == 6),
    "limit_val_batches": (
        "+trainer.limit_val_batches=1 data.eval_batch_size=32",
        lambda w, r: w.calls["on_validation_batch_end"] == 2,
    ),
    "limit_test_batches": (
        "+trainer.limit_test_batches=1 data.eval_batch_size=32",
        lambda w, r: w.calls["on_test_batch_end"] == 1,
    ),
    "overfit_batches": ("+trainer.overfit_batches=2", lambda w, r: r["steps"] == 4),
    "val_check_interval": (
        "+trainer.val_check_interval=0.25", lambda w, r: w.calls["on_validation_end"] == 8
    ),
    "check_val_every_n_epoch": (
        "+trainer.check_val_every_n_epoch=2", lambda w, r: w.calls["on_validation_end"] == 1
    ),
    "num_sanity_val_steps": (
        "trainer.num_sanity_val_steps=1", lambda w, r: w.calls["on_sanity_check_end"] == 1
    ),
    "log_every_n_steps": (
        "trainer.log_every_n_steps=4", lambda w, r: count("loss/train_step") == 8
    ),
    "enable_model_summary": (
        "trainer.enable_model_summary=true",
        lambda w, r: any(isinstance(c, pl.callbacks.ModelSummary) for c in w.trainer.callbacks),
    ),
    "accumulate_grad_batches": (
        "trainer.accumulate_grad_batches=4", lambda w, r: r["steps"] == 2 * STEPS / 4
    ),
    "gradient_clip_val": (
        "trainer.gradient_clip_val=1e-9", lambda w, r: abs(r["last"]["loss/train"] - 84.1) < 1
    ),
    "gradient_clip_algorithm": (
        "trainer.gradient_clip_val=1e-9 +trainer.gradient_clip_algorithm=value",
        lambda w, r: w.trainer.gradient_clip_algorithm == "value",
    ),
    "deterministic": (
        "trainer.deterministic=true", lambda w, r: torch.are_deterministic_algorithms_enabled()
    ),
    "benchmark": ("+trainer.benchmark=true", lambda w, r: torch.backends.cudnn.benchmark),
    "inference_mode": ("+trainer.inference_mode=false", lambda w, r: not w.inference),
    "profiler": (
        "+trainer.profiler=simple",
        lambda w, r: isinstance(w.trainer.profiler, pl.profilers.SimpleProfiler),
    ),
    "detect_anomaly": ("+trainer.detect_anomaly=true", lambda w, r: w.anomaly),
    "plugins": (
        "+trainer.plugins=[{_target_:lightning.pytorch.plugins.TorchCheckpointIO}]",
        lambda w, r: type(w.trainer.strategy.checkpoint_io).__name__ == "TorchCheckpointIO",
    ),
    "reload_dataloaders_every_n_epochs": (
        "+trainer.reload_dataloaders_every_n_epochs=1", lambda w, r: r["status"] == "finished"
    ),
    "enable_autolog_hparams": (
        "+trainer.enable_autolog_hparams=false", lambda w, r: not w.trainer.enable_autolog_hparams
    ),
    "precision": (
        "trainer.precision=64-true",
        lambda w, r: {x.dtype for x in weights().values()} == {torch.float64},
    ),
}  # fmt: skip
# These have effects with several processes only, so the Trainer's attributes are checked.
ATTRIBUTES = {
    "devices": ("trainer.devices=2", lambda t: t.num_devices == 2),
    "strategy": ("trainer.strategy=ddp", lambda t: type(t.strategy).__name__ == "DDPStrategy"),
    "num_nodes": ("trainer.num_nodes=1", lambda t: t.num_nodes == 1),
    "sync_batchnorm": (
        "+trainer.sync_batchnorm=true model.net.norm=torch",
        lambda t: t.num_devices == 1,
    ),
}
REFUSED = {
    "use_distributed_sampler": "+trainer.use_distributed_sampler=false",
    "enable_progress_bar": "+trainer.enable_progress_bar=false",
} | {name: f"+trainer.{name}=1" for name in RESERVED}


def count(tag: str) -> int:
    return len(events().Scalars(tag))


def test_every_argument_of_trainer_is_tested():
    signature = [
        name for name in inspect.signature(pl.Trainer.__init__).parameters if name != "self"
    ]
    assert trainer_arguments() == signature
    assert Counter([*EFFECTS, *ATTRIBUTES, *REFUSED]) == Counter(signature)


@pytest.mark.parametrize("name", EFFECTS)
def test_an_argument_of_trainer_has_its_effect(train, name):
    words, has_effect = EFFECTS[name]
    try:
        result = train("callbacks=[default,hook_counter]", *words.split())
        assert result["status"] == "finished" and has_effect(hook_counter(), result)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_argument_for_several_processes_is_given_to_the_trainer(name):
    words, is_set = ATTRIBUTES[name]
    assert is_set(build_trainer(compose("trainer.accelerator=cpu", *words.split()), logger=False))


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_that_cannot_work_is_refused(train, name):
    with pytest.raises(UserError, match=name):
        train(REFUSED[name])
    assert not Path("run").exists()


# --- Callbacks and loggers ------------------------------------------------------------------------


def test_the_hooks_of_a_callback_are_called_as_often_as_documented(train):
    train("callbacks=[default,hook_counter]", "trainer.num_sanity_val_steps=1")
    calls, steps = hook_counter().calls, 2 * STEPS
    each_step = ["on_train_batch_start", "on_train_batch_end", "on_before_backward"]
    each_step += ["on_after_backward", "on_before_optimizer_step", "on_before_zero_grad"]
    for hook in each_step:
        assert calls[hook] == steps, hook
    for hook in ("on_train_epoch_start", "on_train_epoch_end"):
        assert calls[hook] == 2, hook
    once = ("on_fit_start", "on_fit_end", "on_train_start", "on_train_end", "on_test_start",
            "on_sanity_check_start", "on_test_epoch_end", "on_load_checkpoint")  # fmt: skip
    assert all(calls[hook] == 1 for hook in once), calls
    assert calls["on_validation_start"] == 3 and calls["on_save_checkpoint"] >= 3
    assert calls["setup"] == calls["teardown"] == 2  # for fit and for test


def test_early_stopping_stops_when_the_error_stalls(train):
    result = train(
        "callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=1",
        "trainer.max_epochs=20", "optim.lr=1e-20",
    )  # fmt: skip
    assert result["status"] == "finished" and result["epochs"] == 2


def test_lightnings_callbacks_work_together(train):
    choices = "[default,model_checkpoint,learning_rate_monitor,device_stats,swa,checkpoint_steps]"
    result = train(f"callbacks={choices}", "callbacks.device_stats.cpu_stats=false",
                   "trainer.max_epochs=5", "model=lenet5_relu")  # fmt: skip
    assert result["status"] == "finished"
    names = sorted(path.name for path in Path("run/checkpoints").iterdir())
    assert [names[0], *names[-2:]] == ["best.ckpt", "last.ckpt", "swa.ckpt"]
    assert len([name for name in names if name.startswith("epoch_0")]) == 3
    tags = events().Tags()["scalars"]
    assert "lr-SGD" in tags and "lr-SGD-momentum" in tags


def test_callbacks_are_added_and_removed_on_the_command_line(train):
    words = ["+callbacks.timer._target_=lightning.pytorch.callbacks.Timer",
             "+callbacks.timer.duration=01:00:00:00", "~callbacks.pictures"]  # fmt: skip
    assert train("callbacks=[default,hook_counter]", *words)["status"] == "finished"
    kinds = {type(callback).__name__ for callback in hook_counter().trainer.callbacks}
    assert "Timer" in kinds and "Pictures" not in kinds
    assert "images" not in events().Tags() or not (events().Tags()["images"])


def test_a_run_without_callbacks_and_loggers(train):
    result = train("callbacks=null", "logger=null")
    assert result["metrics"]["error/test"] < 0.9
    assert not Path("run/checkpoints").exists() and not list(Path("run").glob("events.*"))


def test_a_csv_file_has_the_metrics_of_the_run(train):
    result = train("logger=[tensorboard,csv]")
    with open("run/csv/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    last = [row["error/val"] for row in rows if row["error/val"]][-1]
    assert float(last) == result["last"]["error/val"]
    assert list(Path("run").glob("events.*"))


@pytest.mark.filterwarnings("ignore")  # warnings of the services' libraries
@pytest.mark.parametrize("service", ["mlflow", "wandb"])
def test_a_tracking_service_gets_the_config_and_the_metrics(train, service, monkeypatch):
    pytest.importorskip(service)
    monkeypatch.setenv("WANDB_SILENT", "true")
    offline = ["logger.wandb.offline=true"] if service == "wandb" else []
    assert train(f"logger={service}", "trainer.max_epochs=1", *offline)["status"] == "finished"
    texts = [path.read_bytes() for path in Path("run").rglob("*") if path.is_file()]
    written = b"".join(texts)
    assert b"error/val" in written or any("error" in str(p) for p in Path("run").rglob("*"))
    assert b"schedule_epochs" in written or any(
        "schedule_epochs" in path.name for path in Path("run").rglob("*")
    )


# --- Users' parts ---------------------------------------------------------------------------------


def test_a_users_net_needs_three_files(train):
    result = train("model=tiny_resnet")
    assert result["epochs"] == 2 and result["metrics"]["error/test"] < 0.9
    assert {name.split(".")[1] for name in weights()} == {"stem", "block", "output"}


def test_a_missing_recipe_of_a_users_net_is_reported_in_one_line(train):
    with pytest.raises(UserError, match="^optim.optimizer: is missing; .* optim=<another>"):
        train("model=no_recipe")


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no")
def test_a_gan_with_two_optimizers_is_trained_and_resumed(train):
    result = train("model=gan", "trainer.max_epochs=2")
    assert result["status"] == "finished" and {"g_loss", "d_loss_epoch"} <= result["metrics"].keys()
    assert result["steps"] == 2 * 2 * STEPS  # Lightning counts the steps of both optimizers
    more = train("resume=run", "trainer.max_epochs=3")
    assert more["epochs"] == 3 and more["steps"] == 3 * 2 * STEPS


def test_a_users_module_and_data_run_with_our_callbacks(train):
    result = train(
        "model=lit_classifier", "data=per_sample", "callbacks=[default,early_stopping]",
        "callbacks.checkpoint.monitor=val_acc", "callbacks.checkpoint.mode=max",
        "callbacks.early_stopping.monitor=val_acc", "callbacks.early_stopping.mode=max",
    )  # fmt: skip
    assert {"train_loss_epoch", "val_acc", "test_loss", "epochs_seen"} <= result["metrics"].keys()
    assert (Path("run") / "checkpoints" / "best.ckpt").exists()
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


def test_a_users_module_is_evaluated_and_an_error_of_its_own_keeps_its_traceback(
    train, monkeypatch
):
    measured = train("model=lit_classifier", "data=per_sample", "trainer.max_epochs=1")["metrics"]
    run = Composer([OWN_PARTS], trusted=["lit_classifier", "per_sample"]).load_run("run")
    assert evaluate(*run, "test").metrics["test_loss"] == measured["test_loss"]

    def fail(self, batch, batch_idx):
        raise ValueError("a mistake of the user's")

    monkeypatch.setattr(sys.modules["lit_classifier"].LitClassifier, "test_step", fail)
    with pytest.raises(ValueError, match="a mistake of the user's"):
        evaluate(*run, "test")


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_ordinary_modules_and_data_keep_their_own_names_and_splits(train):
    """The names of arguments and attributes are their own; evaluation splits as training did."""
    measured = train("model=ordinary", "data=random_split", "debug=overfit", "keep=true")
    assert "val_loss" in measured["metrics"]
    measured = train("model=ordinary", "data=random_split", "run_dir=other")["metrics"]
    own = Composer([OWN_PARTS], trusted=["ordinary", "random_split"])
    config = own.compose(["model=ordinary", "data=random_split"])
    module, _ = build(config)
    assert (module.hparams.loss, module.hparams.precision) == ("mse", 3)
    for split in ("val", "test"):
        found = evaluate(*own.load_run("other"), split).metrics
        assert found[f"{split}_loss"] == measured[f"{split}_loss"]


@pytest.mark.filterwarnings("ignore:Found 3 module")  # in eval mode
def test_a_frozen_part_of_a_users_net_stays_frozen(train):
    words = ["data=random_split", "model=lenet5_relu", "model.net={_target_:ordinary.FrozenStem}"]
    train(*words, "+optim.optimizer.weight_decay=0.1")
    state = weights()
    assert state["net.stem.1.num_batches_tracked"] == 0
    assert not state["net.stem.1.running_mean"].any() and state["net.stem.1.running_var"].all()
    packages = ["ordinary", "random_split"]
    net = Classifier.load_from_checkpoint("run/checkpoints/last.ckpt", trust=packages)
    assert net.num_classes is None and not net.net.stem.training
    again = Classifier.load_from_checkpoint(
        "run/checkpoints/last.ckpt", hparams_file="run/config.yaml", trust=packages, net=net.net
    )
    assert again.net is net.net and again.hparams == net.hparams


def test_a_loss_with_class_weights_is_trained_used_and_resumed(train):
    shares = [1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0]
    word = f"+model.loss.weight={{_target_:torch.tensor,data:{shares}}}".replace(" ", "")
    with pytest.raises(UserError, match="write such a list as {_target_: torch.tensor, data"):
        train("model=lenet5_relu", f"+model.loss.weight={shares}".replace(" ", ""))
    train("model=lenet5_relu", word)
    net = classic_cnns.load("run")
    assert net.loss.weight.tolist() == shares
    scores, labels = torch.randn(40, 10), torch.arange(40) % 10
    each = [shares[label] * -scores[i].log_softmax(0)[label] for i, label in enumerate(labels)]
    total = sum(shares[label] for label in labels)
    torch.testing.assert_close(net.loss(scores, labels), sum(each) / total)
    assert train("resume=run", "trainer.max_epochs=3")["epochs"] == 3


def test_a_run_that_could_not_be_read_again_says_so_before_training(train, caplog):
    word = "+model.loss.weight={_target_:torch.FloatTensor,_args_:[[1,1,1,1,1,1,1,1,1,1]]}"
    train("model=lenet5_relu", word)
    (line,) = [line for line in caplog.messages if "neither resumed nor used" in line]
    assert "torch.FloatTensor" in line
    assert caplog.messages.index(line) < caplog.messages.index(
        next(line for line in caplog.messages if line.startswith("epoch "))
    )
    with pytest.raises(UserError, match="torch.FloatTensor: is not a known class"):
        classic_cnns.load("run")


def test_layers_that_are_trained_later_need_an_optimizer_that_is_not_fused(train):
    words = ["+callbacks.later={_target_:ordinary.TrainLater}", "trainer.max_epochs=3"]
    with pytest.raises(UserError, match="fused=true: .*try optim.optimizer.fused=false"):
        train(*words)
    assert train(*words, "optim.optimizer.fused=false", "run_dir=b")["epochs"] == 3


def test_an_augmentation_is_added_on_the_command_line(train):
    word = "+data.augmentations.mine=[{_target_:classic_cnns.data.transforms.RandomShift,pixels:2}]"
    train(word, "data.augment=mine")
    with pytest.raises(UserError, match="mine: RandomErasing has no `draws`"):
        other = "{_target_:torchvision.transforms.v2.RandomErasing}"
        train(f"+data.augmentations.mine=[{other}]", "data.augment=mine", "run_dir=b")


def test_a_class_without_partial_or_with_old_arguments_says_what_to_write(train):
    with pytest.raises(UserError, match="add _partial_: true"):
        train("optim.optimizer={_target_:torch.optim.AdamW,lr:0.1}")
    with pytest.raises(UserError, match="'(optim.optimizer=.*_partial_: true})'") as refusal:
        train("optim.optimizer._target_=torch.optim.AdamW")
    word = re.search("'(optim.optimizer=.*})'", str(refusal.value))[1]
    train(word.replace("<class>", "torch.optim.AdamW"))


def test_a_config_is_composed_inside_a_hydra_program_and_in_threads():
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    with hydra.initialize_config_dir(str(OWN_PARTS), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        READ.clear()
        assert compose("model=simple_cnn", "optim=lenet5_relu").model.net
        assert GlobalHydra.instance().hydra is outer and hydra.compose("model/gan")
    words = [["optim=lenet5_relu"], ["optim=lenet5"], ["optim=simple_cnn"], ["optim=alexnet"]]
    with ThreadPoolExecutor(4) as pool:
        READ.clear()
        configs = list(pool.map(lambda own: compose("model=simple_cnn", *own), 4 * words))
    assert [str(c.optim) for c in configs[:4]] == [str(c.optim) for c in configs[-4:]]


def test_a_loss_that_is_a_function_is_refused_before_training(train):
    words = "model.loss={_target_:torch.nn.functional.cross_entropy,_partial_:true}"
    with pytest.raises(UserError, match="^model.loss: has to be an nn.Module"):
        train("model=lenet5_relu", words)


def test_a_users_module_with_num_classes_is_evaluated_whatever_its_test_step_returns(
    train, monkeypatch
):
    measured = train("model=lit_classifier", "data=per_sample", "trainer.max_epochs=1")["metrics"]
    run = Composer([OWN_PARTS], trusted=["lit_classifier", "per_sample"]).load_run("run")
    module = sys.modules["lit_classifier"].LitClassifier
    monkeypatch.setattr(module, "num_classes", 10, raising=False)
    test_step, loss = module.test_step, torch.tensor(1.0)
    for output in (loss, {"loss": loss, "logits": torch.zeros(8, 10)}, None):
        monkeypatch.setattr(module, "test_step", lambda *x, y=output: (test_step(*x), y)[1])
        found = evaluate(*run, "test")
        assert found.classes == {} and found.metrics["test_loss"] == measured["test_loss"]


class Faulty(pl.Callback):
    """A user's callback with a mistake."""

    error: Exception

    def on_train_start(self, trainer, pl_module):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [ValueError("precision must be positive"), AttributeError("x has no attribute 'backbone'")],
)
def test_an_error_in_a_users_code_is_not_taken_for_one_of_a_setting(train, error, monkeypatch):
    monkeypatch.setattr(Faulty, "error", error, raising=False)
    with pytest.raises(type(error)) as raised:
        train(f"+callbacks.faulty._target_={__name__}.Faulty")
    assert raised.value is error


def test_lightnings_error_in_a_users_code_is_one_line_with_the_place(train, monkeypatch):
    error = MisconfigurationException("try another metric")
    monkeypatch.setattr(Faulty, "error", error, raising=False)
    lines, first = inspect.getsourcelines(Faulty.on_train_start)
    place = re.escape(f"{__file__}:{first + len(lines) - 1}")
    with pytest.raises(UserError, match=f"^try another metric; see {place}$"):
        train(f"+callbacks.faulty._target_={__name__}.Faulty")


@pytest.mark.parametrize(
    "fail",
    [lambda: json.loads("{"), lambda: torch.nn.Linear(2, 3)(torch.zeros(5)),
     lambda: pl.Trainer(precision="5", accelerator="cpu"), lambda: compose("sed=1")],
    ids=["standard library", "torch", "Lightning", "this project"],
)  # fmt: skip
def test_only_the_users_own_code_is_a_place_to_look_at(fail):
    with pytest.raises(Exception) as raised:
        fail()
    error = raised.value
    assert line_of_user(error).startswith(__file__)
    below = raised.tb.tb_next.tb_next  # without this function and the one that it called
    assert below and line_of_user(error.with_traceback(below)) is None


def test_our_nets_can_be_trained_on_a_users_data(train):
    result = train("model=lenet5_relu", "data=per_sample", "model.net.num_classes=10",
                   "model.net.in_channels=3", "optim.lr=0.01")  # fmt: skip
    assert result["status"] == "finished" and "error/test" in result["metrics"]


MISTAKES = {
    "model=no_training_step": "has no training_step",
    "model=lenet5 data=per_sample": "^data: its images of 3x32x32 do not fit model.net",
    "model=lit_classifier data=per_sample callbacks.checkpoint.monitor=val_ac":
        "val_ac: is not among the metrics; try one of .*val_acc",
    "model=lit_classifier +model.lr_=3": "^model: .*unexpected keyword argument 'lr_'",
    "model=lenet5_relu data=per_sample": "^model.net.num_classes=.*data.num_classes.*; try model.n",
    "data._target_=torch.nn.ReLU": "^data",
    "init_from=nothing": "init_from=nothing: no run is there",
    "+callbacks.a._target_=lightning.pytorch.callbacks.LearningRateFinder":
        "callbacks: LearningRateFinder needs .*; try rates instead: -m optim.lr=",
    "+callbacks.a._target_=lightning.pytorch.callbacks.BackboneFinetuning":
        "callbacks: BackboneFinetuning: .*'backbone'",
    "model=gan trainer.channels_last=true": "trainer.channels_last=true: .*nets of model.net",
    "model=gan trainer.compile=inductor": "trainer.compile=inductor: .*nets of model.net",
    "optim.optimizer={_target_:torch.optim.SparseAdam,_partial_:true}":
        "optim.optimizer: SparseAdam does not support dense gradients",
}  # fmt: skip


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_in_a_users_parts_is_reported_in_one_line_without_a_result(train, words):
    with pytest.raises(UserError, match=MISTAKES[words]) as refusal:
        train(*words.split())
    assert "\n" not in str(refusal.value)
    assert not Path("run/result.json").exists()


def too_large(*_):
    torch.empty(2**48)


def too_large_for_cuda(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a ...")


def too_large_for_numpy(*_):
    np.empty(2**58)


@pytest.mark.parametrize("step", [too_large, too_large_for_cuda, too_large_for_numpy])
def test_too_little_memory_is_reported_in_one_line(train, monkeypatch, step):
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", step)
        line = "^data.batch_size=.*, data.eval_batch_size=500: memory is not sufficient; try .*$"
        with pytest.raises(UserError, match=line):
            train()
    assert not Path("run").exists()
    train("trainer.max_epochs=1")
    monkeypatch.setattr(Classifier, "test_step", step)
    with pytest.raises(UserError, match=line):
        evaluate(*Composer().load_run("run"), "test")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="here torch can use the GPU")
def test_a_gpu_that_torch_cannot_use_is_reported_in_one_line(train, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # a GPU, to all but torch
    line = "^trainer.accelerator=gpu: torch .* cannot use the GPU .*; try trainer=cpu$"
    with pytest.raises(UserError, match=line):
        train("trainer=gpu", "trainer.accelerator=gpu")
    assert not Path("run").exists()


def test_a_run_is_not_written_into_a_folder_with_other_files(train):
    Path("run/papers").mkdir(parents=True)
    Path("run/papers/thesis.txt").write_text("ten years of work")
    Path("run/notes.txt").write_text("more")
    with pytest.raises(UserError, match="run_dir=run: must be new or empty"):
        train()
    left = sorted(str(path) for path in Path("run").rglob("*"))
    assert left == ["run/notes.txt", "run/papers", "run/papers/thesis.txt"]
    assert Path("run/papers/thesis.txt").read_text() == "ten years of work"


def test_a_scheduler_is_chosen_on_the_command_line_where_the_recipe_has_none(train):
    steps = "{_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 1}"
    words = ["model=lenet5_relu", f"optim.scheduler={steps}", "+optim.scheduler.gamma=0.5"]
    train(*words, "trainer.log_every_n_steps=1")
    rates = [e.value for e in events().Scalars("optim/lr")]
    assert rates[STEPS] == pytest.approx(rates[0] / 2)


@pytest.mark.parametrize("norm", ["batch", "torch"])
def test_batch_normalisation_of_one_image_is_reported_in_one_line(train, norm):
    words = [f"model.net.norm={norm}", "trainer.max_epochs=1"]
    with pytest.raises(UserError, match=r"^data.batch_size: the last batch .* has one image"):
        train(*words, "data.batch_size=73")  # 512 = 7 * 73 + 1
    assert not Path("run").exists()


# --- Resuming -------------------------------------------------------------------------------------


def test_a_finished_run_is_extended_with_the_weights_of_a_longer_one(train):
    words = ["model=lenet5_relu"]  # its rate is constant
    train(*words, "run_dir=long", "trainer.max_epochs=4")
    train(*words)
    result = train("resume=run", "trainer.max_epochs=4")
    assert same(weights(), weights("long")) and result["epochs"] == 4
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    curve = [e.step for e in events().Scalars("error/val")]
    assert curve == [STEPS * (epoch + 1) - 1 for epoch in range(4)]
    assert train("resume=run")["epochs"] == 4  # it has finished


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no")
def test_a_users_module_and_data_repeat_their_random_draws_when_resumed(train):
    words = ["model=gan", "model.pixels=3072", "data=per_sample"]  # noise, shuffling and flips
    train(*words, "run_dir=long", "trainer.max_epochs=3")
    train(*words, "trainer.max_epochs=1")
    train("resume=run", "trainer.max_epochs=3")
    assert same(weights(), weights("long"))


def test_an_epoch_without_a_validation_has_no_metrics_of_an_earlier_one(train, caplog):
    train("+trainer.check_val_every_n_epoch=2", "trainer.max_epochs=4")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert ["error/val" in line["metrics"] for line in lines] == [False, True, False, True]
    assert all("error/train" in line["metrics"] for line in lines)
    told = [text for text in caplog.messages if text.startswith("epoch ")]
    assert ["validation" in text for text in told] == [False, True, False, True]
    curves.write(Path("curves.png"), read_table([Path("run")]))  # without a warning


def test_a_run_extended_beyond_its_schedule_keeps_the_last_rate(train, caplog):
    train("trainer.log_every_n_steps=1")
    train("resume=run", "trainer.max_epochs=3")
    assert "the schedule ends after 2 epochs; then the rate stays" in caplog.text
    rates = [e.value for e in events().Scalars("optim/lr")]
    assert set(rates[2 * STEPS :]) == {min(rates)}


def test_a_schedule_ends_with_the_run_if_the_accumulation_changes(train):
    changes = "{_target_:lightning.pytorch.callbacks.GradientAccumulationScheduler,"
    done = train(f"+callbacks.a={changes}scheduling:{{1:3}}}}", "trainer.log_every_n_steps=1")
    assert done["steps"] == STEPS + ceil(STEPS / 3)
    rates = [e.value for e in events().Scalars("optim/lr")]
    assert rates[-1] == min(rates) < 1e-3 * max(rates)


def test_a_run_is_not_resumed_with_fewer_epochs_than_it_has(train):
    train()
    with pytest.raises(UserError, match="max_epochs=1: run has done 2 epochs already"):
        train("resume=run", "trainer.max_epochs=1")
    with pytest.raises(UserError, match="max_steps=5: run has done 32 steps already; try .*=64"):
        train("resume=run", "+trainer.max_steps=5")


def test_a_run_starts_from_the_weights_of_another(train):
    train("run_dir=first")
    train("init_from=first", "optim.lr=1e-30")
    first, second = weights("first", "best"), weights()
    assert same(first, second)
    train("init_from=first/checkpoints/last.ckpt", "init_skip=[F6]", "optim.lr=1e-30",
          "run_dir=skipped")  # fmt: skip
    skipped, last = weights("skipped"), weights("first")
    differ = {name for name in last if not torch.equal(skipped[name], last[name])}
    assert differ == {"net.F6.weight", "net.F6.bias"}
    with pytest.raises(UserError, match=r"does not fit this net in F6, output, S2, S4; try init_s"):
        train("init_from=first", "model=lenet5_relu", "run_dir=other")
    with pytest.raises(UserError, match=r"; try init_skip=\[output,F6,S2,S4\] "):
        words = ["model=lenet5_relu", "init_skip=[output]", "run_dir=other"]
        train("init_from=first", *words)
    Path("first").rename("moved")  # a resumed run has its own weights
    assert train("resume=skipped", "trainer.max_epochs=3")["epochs"] == 3


def test_a_smaller_training_set_has_a_smaller_validation_set(train, caplog):
    train("data.val_size=null", "data.train_size=320")
    assert "288 images to train on, 32 held out for validation" in caplog.text


# --- Debugging ------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["default", "few_batches", "overfit", "profiler", "anomaly"])
def test_a_debugging_run_leaves_no_files(train, choice, tmp_path, caplog):
    before = sorted(path for path in tmp_path.iterdir())
    assert train(f"debug={choice}")["status"] == "finished"
    assert caplog.messages[-1].endswith(", nothing of this run is kept")
    assert sorted(path for path in tmp_path.iterdir()) == before
    assert ("Profiler Report" in caplog.text) == (choice == "profiler")


def test_overfitting_reaches_a_training_error_of_zero(train):
    result = train("debug=overfit", "trainer.max_epochs=40")
    assert result["last"]["error/train"] == 0.0


# --- From Python ----------------------------------------------------------------------------------


def environment(folder: Path) -> dict[str, str]:
    paths = {"PYTHONPATH": Path(__file__).parents[1] / "src", "IPYTHONDIR": folder / "ipython"}
    return os.environ | {name: str(path) for name, path in paths.items()}


def test_a_notebook_can_compose_build_and_train(tiny_mnist, tiny_config_dir, tmp_path):
    program = f"""
from classic_cnns import UserError, build, compose, train
config = compose("data=tiny", "data_dir={tiny_mnist.folder}", "trainer.accelerator=cpu",
                 "trainer.max_epochs=1", config_dirs=["{tiny_config_dir}"])
module, data = build(config)
data.prepare_data(); data.setup("fit")
images, labels = next(iter(data.train_dataloader()))
print(module.loss(module.net(images), labels).item() > 0, tuple(images.shape))
result = train(config)
print(result["status"], sorted(result["metrics"])[0], result["directory"])
try:
    compose("optim.lrr=1")
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment(tmp_path),
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "True (16, 1, 32, 32)" in done.stdout
    assert "finished accuracy/test outputs/lenet5-tiny/" in done.stdout
    assert "did you mean optim.lr" in done.stdout


def test_the_batch_size_that_lightning_finds_is_told_and_recorded(train, caplog):
    finder = "+callbacks.finder._target_=lightning.pytorch.callbacks.BatchSizeFinder"
    words = ["+callbacks.finder.init_val=64", "+callbacks.finder.max_trials=2"]
    words += ["+callbacks.finder.steps_per_trial=1", "trainer.max_epochs=1"]
    found = train(finder, *words)
    size = found["batch_size"]
    assert size > 32 and found["steps"] == 512 / size
    assert f"trained with batches of {size} images; data.batch_size={size} repeats it" in (
        caplog.messages
    )
    again = train("run_dir=again", "trainer.max_epochs=1", f"data.batch_size={size}")
    assert again["steps"] == found["steps"] and "batch_size" not in again


def test_the_name_of_a_run_may_be_a_number(train):
    result = train("name=5", "run_dir=null", "trainer.max_epochs=1")
    assert Path(result["directory"]).parent == Path("outputs/5")


def test_ctrl_c_in_python_is_a_keyboard_interrupt_with_a_checkpoint(train):
    class Interrupt(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("epoch   1/"):
                signal.raise_signal(signal.SIGINT)

    train("run_dir=whole")
    before, handler = signal.getsignal(signal.SIGINT), Interrupt()
    logging.getLogger("classic_cnns").addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train()
    finally:
        logging.getLogger("classic_cnns").removeHandler(handler)
    assert signal.getsignal(signal.SIGINT) == before
    assert json.loads(Path("run/result.json").read_text())["status"] == "interrupted"
    assert train("resume=run")["status"] == "finished"
    assert same(weights(Path("run")), weights(Path("whole")))


@pytest.mark.parametrize(("stream", "shown"), [("ipykernel.iostream", True), ("io", False)])
def test_a_notebook_shows_the_progress_bar_and_a_file_does_not(train, stream, shown, monkeypatch):
    kind = type("OutStream", (io.StringIO,), {"__module__": stream})
    monkeypatch.setattr(sys, "stderr", kind())
    train()
    assert ("images/s" in sys.stderr.getvalue()) == shown


@pytest.mark.parametrize(("columns", "shown"), [(80, r" left, +[\d.]+ images/s"), (60, " left")])
def test_the_bar_on_a_narrow_terminal_has_the_time_left(train, columns, shown, monkeypatch):
    kind = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    monkeypatch.setattr(sys, "stderr", kind())
    bar = partial(progress.progress_bar, ncols=columns - 1)  # as tqdm finds it on a terminal
    monkeypatch.setattr(progress, "progress_bar", bar)
    train()
    bars = [text for text in sys.stderr.getvalue().split("\r") if text.startswith("epoch 2")]
    assert all(len(bar) < columns for bar in bars) and re.search(shown, bars[-1])


def test_a_cell_with_captured_output_does_not_take_the_messages_of_later_ones():
    outputs = []
    for number in range(2):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            show_log()
            logging.getLogger("classic_cnns").info("cell %d", number)
        outputs.append(output.getvalue())
    assert outputs == ["cell 0\n", "cell 1\n"]


def test_a_notebook_shows_a_mistake_in_one_line(tmp_path):
    mistake = "from classic_cnns import compose; compose('model=lenet6')"
    command, env = [sys.executable, "-m", "IPython", "-c", mistake], environment(tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    (line,) = done.stdout.strip().splitlines()
    assert line.startswith("error: model=lenet6: did you mean model=lenet5? model is one of ")


def test_python_trains_in_a_thread_and_refuses_several_devices(train):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train, "trainer.max_epochs=1").result()["status"] == "finished"
    with pytest.raises(UserError, match="trainer.devices=2: only the command starts a process"):
        api.train(compose("trainer.devices=2", "trainer.accelerator=cpu"))


def test_build_gives_the_parts_of_a_config():
    config = compose("model=simple_cnn", "data=mnist")
    with pytest.raises(ReadonlyConfigError):  # not silently without effect
        config.seed = 5
    module, data = build(config)
    assert isinstance(module, pl.LightningModule) and isinstance(data, pl.LightningDataModule)


def test_a_layer_to_skip_that_does_not_exist_is_reported(train):
    train("run_dir=first", "trainer.max_epochs=1")
    with pytest.raises(UserError, match=r"^init_skip=\[F66\]: the net has no such layer"):
        train("init_from=first", "init_skip=[F6,F66]")


def test_the_loss_of_a_step_is_not_divided_by_the_accumulated_batches(train):
    train("optim.lr=1e-9", "trainer.accumulate_grad_batches=4", "trainer.log_every_n_steps=1")
    steps = [e.value for e in events().Scalars("loss/train_step")]
    (epoch, *_) = [e.value for e in events().Scalars("loss/train")]
    assert sum(steps) / len(steps) == pytest.approx(epoch, rel=0.1)


def test_arguments_of_trainer_may_be_groups_of_keys(train):
    result = train("+trainer.max_time={minutes:5}", "trainer.max_epochs=1")
    assert (result["status"], result["max_time"]) == ("finished", {"minutes": 5})


def test_data_without_a_length_is_trained_on(train, caplog):
    words = ["data=endless", "model=lenet5_relu", "model.net.num_classes=10",
             "model.net.in_channels=1"]  # fmt: skip
    steps = ["+trainer.limit_train_batches=60", "trainer.max_epochs=1"]
    assert train(*words, *steps)["steps"] == 60
    estimate = train(*words, "estimate=true", "run_dir=null", "optim.scheduler=null")
    assert estimate == {"status": "estimated"}
    (line,) = [text for text in caplog.messages if "estimate: " in text]
    assert "epoch" not in line and "MB for checkpoints" in line


def test_a_schedule_without_a_number_of_steps_is_refused(train):
    words = ["data=endless", "model=lenet5_relu", "model.net.num_classes=10"]
    one_cycle = "_target_:torch.optim.lr_scheduler.OneCycleLR,_partial_:true,max_lr:0.1"
    words += [f"optim.scheduler={{{one_cycle}}}"]
    with pytest.raises(UserError, match="optim.scheduler: needs a number of steps.*max_steps=1000"):
        train(*words, "model.net.in_channels=1")


def test_a_resumed_pass_is_only_the_first_of_a_loader(tiny_mnist, tiny_config_dir):
    words = ["data=tiny", f"data_dir={tiny_mnist.folder}", "data.batch_size=32"]
    _, data = build(compose(*words, config_dirs=[str(tiny_config_dir)]))
    data.prepare_data()
    data.setup("fit")
    data.load_state_dict({"passed": 3})
    lengths = [len(list(data.train_dataloader())) for _ in range(2)]
    assert lengths == [lengths[1] - 3, len(data.train_dataloader())]


def test_a_plateau_schedule_needs_no_end(train):
    assert build(compose("model=lenet5_relu", "optim=alexnet", "trainer.max_epochs=-1"))


def test_names_of_our_options_are_free_in_a_users_net(tmp_path):
    (tmp_path / "model").mkdir()
    net = "net: {_target_: torch.nn.Conv2d, channels: 32, mode: full, pool: sum}\n"
    (tmp_path / "model" / "own.yaml").write_text("defaults: [lenet5_relu, _self_]\n" + net)
    words = ["model=own", "model.net.mode=valid", "model.net.pool=max", "model.net.channels=16"]
    config = compose(*words, config_dirs=[str(tmp_path)])
    assert (config.model.net.mode, config.model.net.channels) == ("valid", 16)


def test_auto_means_one_process_on_a_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert device_count({"devices": "auto", "accelerator": "cpu"}) == 1
    assert device_count({"devices": "auto", "accelerator": "gpu"}) == 2


def test_layers_with_several_outputs_are_listed():
    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.output = torch.nn.LSTM(28, 8, batch_first=True), torch.nn.Linear(8, 10)

        def forward(self, images):
            return self.output(self.rnn(images[:, 0])[0][:, -1])

    assert "rnn" in summary.table(Recurrent(), torch.zeros(1, 1, 28, 28))


def test_a_run_without_a_validation_or_a_test_has_the_usual_lines(train, caplog):
    caplog.set_level("INFO")
    train("+trainer.limit_val_batches=0", "+trainer.limit_test_batches=0", "trainer.max_epochs=1",
          "callbacks=default")  # fmt: skip
    (line,) = [text for text in caplog.messages if text.startswith("epoch   1/1")]
    assert re.fullmatch(r"epoch +1/1 +loss +[\d.]+ +error +[\d.]+% training +[\d,]+ images/s", line)
    title, row, end = caplog.messages[-1].strip("\n").splitlines()
    assert title.split() == ["loss", "error", "accuracy"] and row.split()[0] == "training"
    assert end.startswith("1 epoch in ")

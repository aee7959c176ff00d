"""Lightning still has the code that we replace, and what we replace it by does the same."""

import inspect

import lightning.pytorch as pl
import torch
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.profilers import PassThroughProfiler, SimpleProfiler
from torch import nn

from classic_cnns import build, compose
from classic_cnns.run.build import build_trainer
from classic_cnns.trainer.lightning_internals import NoProfiler, disable_sigterm_exchange

GONE = (
    "This Lightning no longer sends its SIGTERM flag in _TrainingEpochLoop.{}: look where it does "
    "now (#21487), and change or remove trainer/lightning_internals.py."
)


def test_lightning_still_sends_its_flag_before_each_batch():
    name = "_broadcast_sigterm_tensor"
    assert hasattr(_TrainingEpochLoop, name), GONE.format(name)
    assert name in inspect.getsource(_TrainingEpochLoop.advance), GONE.format("advance")
    assert ".broadcast(" in inspect.getsource(getattr(_TrainingEpochLoop, name)), GONE.format(name)


def test_our_trainer_does_not_send_it():
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    disable_sigterm_exchange(trainer)
    loop = trainer.fit_loop.epoch_loop
    assert "torch.distributed" not in inspect.getsource(loop._broadcast_sigterm_tensor)


def test_lightning_still_goes_through_a_finished_epoch_again_with_max_steps():
    changed = "Lightning resumes runs with max_steps in another way: is ResumeExactly still needed?"
    assert "_iteration_based_training()" in inspect.getsource(_FitLoop.restarting.fset), changed
    assert "self._restarting = restarting" in inspect.getsource(_Loop.restarting.fset), changed
    stages = inspect.getsource(_FitLoop.on_advance_start)
    assert "restarted_mid_epoch" in stages and "restarted_on_epoch_end" in stages, changed


def test_lightning_still_restores_its_loops_after_the_callbacks():
    changed = "Lightning restores runs in another order: ResumeExactly changes the epoch too late."
    source = inspect.getsource(pl.Trainer._run)
    first, then = "_restore_modules_and_callbacks(", "restore_training_state("
    assert 0 < source.index(first) < source.index(then), changed


def test_hooks_are_only_wrapped_for_a_profiler():
    assert type(pl.Trainer(logger=False).profiler) is PassThroughProfiler, (
        "Lightning has another profiler by default: does NoProfiler still replace it?"
    )
    assert type(build_trainer(compose()).profiler) is NoProfiler
    chosen = build_trainer(compose("+trainer.profiler=simple"))
    assert type(chosen.profiler) is SimpleProfiler


def test_attributes_of_a_module_are_set_as_in_torch():
    module, _ = build(compose())
    assert module.images == 0  # a plain attribute
    module.images = 5
    assert module.images == 5 and "images" not in dict(module.named_parameters())
    for replaced in (nn.Parameter(torch.ones(2)), nn.Linear(2, 3)):
        plain, torchs = module, nn.Module()
        for each in (plain, torchs):
            each.images = 7
            each.images = replaced
        assert [n for n, _ in plain.named_parameters() if n.startswith("images")] == [
            n for n, _ in torchs.named_parameters()
        ]
        del module.images
    module.net = nn.Identity()
    assert [n for n, _ in module.named_parameters() if n.startswith("net")] == []

"""Lightning still has the code that we replace, and it is still worth replacing."""

import inspect

import lightning.pytorch as pl
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from classic_cnns.trainer.lightning_internals import disable_sigterm_exchange

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

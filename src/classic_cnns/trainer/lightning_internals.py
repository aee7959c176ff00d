"""Costs of Lightning's loop that are avoided, corrections of resuming, and private parts (2.6).

Private parts are used nowhere else. If a new version changes one of them, the failing test in
`tests/trainer/test_lightning_internals.py` says what to look at.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    Callback,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.profilers import PassThroughProfiler


class NoProfiler(PassThroughProfiler):
    """Lightning's default, without a generator around each of the 60 hooks in a step.

    The generators take about a percent of a LeNet-5 step.
    """

    def profile(self, action_name: str) -> AbstractContextManager:  # type: ignore[override]
        return nullcontext()


def disable_sigterm_exchange(trainer: pl.Trainer) -> None:
    """Disable Lightning's exchange of a SIGTERM flag between the ranks before each batch.

    The exchange waits for all ranks, and on a GPU for all of its work: 8 to 14 % of a LeNet-5 step
    on two ranks (Lightning-AI/pytorch-lightning#21487). `callbacks.stop` exchanges signals instead,
    ten times a second and without waiting.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    assert hasattr(loop, "_broadcast_sigterm_tensor"), "Lightning has moved its SIGTERM flag"
    loop._broadcast_sigterm_tensor = lambda: None


class ResumeExactly(Callback):
    """Corrects what Lightning leaves out when a run is resumed. Every run has this callback.

    With `max_steps`, Lightning repeats an epoch that has ended, without any batch. A checkpoint at
    the end of an epoch is written before a plateau schedule is stepped, and that step is lost. It
    is also written before the epoch counts as completed, so with
    `reload_dataloaders_every_n_epochs` the DataLoader is created twice, and draws other numbers.
    In a checkpoint within an epoch, weight averaging and the accumulation of gradients lack what
    they set when the epoch started. A run that a callback such as EarlyStopping has ended, and that
    was interrupted in its test, trains another epoch; with larger limits it should.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}  # of a checkpoint at the end of an epoch
        self.limits: Any = None  # of a run that a callback has ended

    def on_save_checkpoint(self, trainer: Any, pl_module, checkpoint: dict[str, Any]) -> None:
        checkpoint["limits"] = [trainer.max_epochs, trainer.max_steps]
        # A timer decides anew, since it may get more time.
        in_time = not any(isinstance(callback, Timer) for callback in trainer.callbacks)
        checkpoint["ended"] = trainer.should_stop and in_time

    def on_load_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":
            epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
            at_end = epochs["processed"] == epochs["ready"]
            self.metrics = checkpoint.get("metrics", {}) if at_end else {}
            epochs["completed"] = epochs["processed"]  # read by the loop after this hook
            self.limits = checkpoint["limits"] if at_end and checkpoint.get("ended") else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        loop = trainer.fit_loop
        if self.limits == [trainer.max_epochs, trainer.max_steps]:
            trainer.should_stop = True
        if loop.restarted_on_epoch_end:
            loop._restarting = loop.epoch_loop.restarting = False
            loop.reset_restart_stage()
            loop.epoch_loop.reset_restart_stage()
            epochs: Any = loop.epoch_progress
            for progress in (epochs.current, epochs.total):
                progress.completed = progress.processed
        for config in trainer.lr_scheduler_configs:
            now = config.interval == "epoch" and trainer.current_epoch % config.frequency == 0
            if config.reduce_on_plateau and now and config.monitor in self.metrics:
                pl_module.lr_scheduler_step(config.scheduler, self.metrics[config.monitor])
        if loop.restarted_mid_epoch:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, (StochasticWeightAveraging, GradientAccumulationScheduler)):
                    callback.on_train_epoch_start(trainer, pl_module)

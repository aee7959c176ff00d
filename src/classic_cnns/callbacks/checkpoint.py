"""Checkpoints of a run: its best and its last one, and those within an epoch."""

import time
from math import inf
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, Checkpoint

from classic_cnns import UserError


def folder(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"


def save_last(trainer: pl.Trainer) -> None:
    """Write the checkpoint from which a run goes on."""
    trainer.save_checkpoint(folder(trainer) / "last.ckpt")


def before_validation(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether validation, or the end of the epoch, follows this batch.

    Lightning leaves that validation out when it goes on from a checkpoint made here.
    """
    every = trainer.val_check_batch or inf
    return trainer.is_last_batch or (batch_idx + 1) % every == 0


class BestAndLast(Checkpoint):
    """`last.ckpt` at the end of every epoch; `best.ckpt` when the metric `monitor` is a new best.

    Lightning's ModelCheckpoint writes `last` only together with a new best, and forgets the best
    when the run's directory was moved. `mode` is min or max.
    """

    def __init__(self, monitor: str = "error/val", mode: str = "min") -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode}: must be min or max")
        self.monitor, self.sign = monitor, 1 if mode == "min" else -1
        self.lowest = inf  # of sign * metric
        self.validated = False  # once at least: from then on the metric has to be there

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validated = True
        if not trainer.is_last_batch:  # else the epoch's end saves, with the metrics of training
            self.save_best(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.save_best(trainer)
            save_last(trainer)

    def save_best(self, trainer: pl.Trainer) -> None:
        known = trainer.callback_metrics
        if self.monitor not in known:
            if not self.validated:
                return
            raise UserError(
                f"callbacks.checkpoint.monitor={self.monitor}: is not among the metrics; try one "
                f"of {', '.join(sorted(known))}"
            )
        value = self.sign * known[self.monitor].item()
        if value < self.lowest:
            self.lowest = value
            trainer.save_checkpoint(folder(trainer) / "best.ckpt")

    def state_dict(self) -> dict[str, float]:
        return {"lowest": self.lowest}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.lowest = state["lowest"]


class EveryFewSteps(Callback):
    """Writes `last.ckpt` also within an epoch, each so many `steps` or `minutes`.

    With several ranks the minutes are those of rank 0.
    """

    def __init__(self, steps: int | None = None, minutes: float | None = None) -> None:
        if (steps is None) == (minutes is None):
            raise ValueError("give one of steps and minutes")
        self.steps, self.seconds = steps, 60 * (minutes or 0)
        self.saved = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.saved = time.monotonic()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.steps:
            due = trainer.global_step % self.steps == 0
        else:
            due = time.monotonic() - self.saved >= self.seconds
            if trainer.world_size > 1:
                due = trainer.strategy.broadcast(due)
        if due and not before_validation(trainer, batch_idx):
            save_last(trainer)
            self.saved = time.monotonic()

"""Checkpoints of a run: its best and its last one, and those within an epoch."""

import time
from math import inf
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from classic_cnns import UserError


def folder(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"


def save_last(trainer: pl.Trainer) -> None:
    """Write the checkpoint from which a run goes on."""
    trainer.save_checkpoint(folder(trainer) / "last.ckpt")


def can_go_on(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a run goes on exactly from a checkpoint that is made after this batch.

    Lightning leaves out a validation that would follow, and no checkpoint has the gradients that
    `accumulate_grad_batches` has not applied yet.
    """
    every, done = trainer.val_check_batch or inf, batch_idx + 1
    ends = trainer.is_last_batch or done % every == 0
    return not ends and done % trainer.accumulate_grad_batches == 0


class BestAndLast(Checkpoint):
    """`last.ckpt` at the end of every epoch; `best.ckpt` when the metric `monitor` is a new best.

    Within an epoch `last.ckpt` follows each so many `steps` of the optimizer, and `minutes` after
    the one before; with several ranks the clock is that of rank 0. Where to write takes long the
    minutes are more, so that it takes a hundredth of the time at most.

    Lightning's ModelCheckpoint writes `last` only together with a new best, and forgets the best
    when the run's directory was moved. `mode` is min or max.
    """

    def __init__(
        self,
        monitor: str = "error/val",
        mode: str = "min",
        steps: int | None = None,
        minutes: float | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode}: must be min or max")
        self.monitor, self.sign = monitor, 1 if mode == "min" else -1
        self.lowest = inf  # of sign * metric
        self.validated = False  # once at least: from then on the metric has to be there
        self.steps, self.seconds = steps, 60 * minutes if minutes else inf
        self.cost = 0.0  # seconds of writing the last one
        self.saved, self.batches, self.look = time.monotonic(), 0, 1  # see `minutes_are_over`

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start_clock()

    def start_clock(self) -> None:
        self.saved, self.batches, self.look = time.monotonic(), 0, 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if not can_go_on(trainer, batch_idx):
            return
        if self.steps and trainer.global_step % self.steps == 0 or self.minutes_are_over(trainer):
            began = time.monotonic()
            save_last(trainer)
            self.cost = time.monotonic() - began
            self.start_clock()

    def minutes_are_over(self, trainer: pl.Trainer) -> bool:
        """The same on all ranks, which ask each other only now and then: it takes a while.

        They look again after as many batches as are left at the speed so far, or have been done.
        """
        self.batches += 1
        if self.seconds == inf or self.batches < self.look:
            return False
        wait = max(self.seconds, 99 * self.cost)
        part = (time.monotonic() - self.saved) / wait
        ahead = min(self.batches, int(self.batches * (1 / max(part, 1e-9) - 1)))
        if trainer.world_size > 1:
            part, ahead = trainer.strategy.broadcast((part, ahead))
        self.look = self.batches + max(1, ahead)
        return part >= 1

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

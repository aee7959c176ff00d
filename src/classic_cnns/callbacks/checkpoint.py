"""Checkpoints of a run: the best, the last, and those within an epoch."""

import logging
import time
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from classic_cnns import UserError

log = logging.getLogger(__name__)

DEFAULT = "error/val"


def checkpoint_folder(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"


def finished_epochs(checkpoint: dict[str, Any]) -> Any:
    """The number of epochs before a checkpoint; None if the file does not say it."""
    with suppress(KeyError, TypeError):  # a file from elsewhere can contain anything
        return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return None


def writes_last(trainer: pl.Trainer) -> bool:
    """Whether the run writes `last.ckpt`, from which it can be resumed."""
    return any(isinstance(callback, BestAndLast) for callback in trainer.callbacks)  # type: ignore


def save_last(trainer: pl.Trainer) -> None:
    """Write the checkpoint from which a run is resumed."""
    trainer.save_checkpoint(checkpoint_folder(trainer) / "last.ckpt")


def is_resumable(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a run can be resumed exactly from a checkpoint written after this batch.

    It cannot if a validation is due now, which Lightning would skip after resuming, or if gradients
    are still being accumulated, since a checkpoint does not contain them.
    """
    every, done = trainer.val_check_batch or inf, batch_idx + 1
    over_epochs = trainer.check_val_every_n_epoch is None  # counted from the first epoch on
    counted = trainer.fit_loop.total_batch_idx + 1 if over_epochs else done
    ends = trainer.is_last_batch or counted % every == 0
    return not ends and not is_accumulating(trainer, batch_idx)


def is_accumulating(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the optimizer has not used the gradients of this batch yet."""
    return not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches != 0


class BestAndLast(Checkpoint):
    """Writes `last.ckpt` after every epoch, and `best.ckpt` when the metric `monitor` improves.

    Within an epoch `last.ckpt` is also written every `steps` optimizer steps, and every `minutes`
    minutes by the clock of rank 0. If writing is slow, the interval grows, so that checkpoints take
    at most 1 % of the time. `mode` is "min" or "max".

    Lightning's ModelCheckpoint writes `last` only together with a new best, and loses the best
    score when the run directory is moved.
    """

    def __init__(
        self,
        monitor: str = DEFAULT,
        mode: str = "min",
        steps: int | None = None,
        minutes: float | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode}: must be min or max")
        self.monitor, self.sign = monitor, 1 if mode == "min" else -1
        self.lowest = inf  # the best value so far of sign * metric
        self.warned = False  # that the metric is missing
        self.validated = False  # at least once; then the metric must exist
        self.postponed = False  # the end that max_time, say, has asked for
        self.steps, self.seconds = steps, 60 * minutes if minutes else inf
        self.cost = 0.0  # seconds of writing the last one
        self.start_clock()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start_clock()

    def start_clock(self) -> None:
        self.saved, self.batches, self.look = time.monotonic(), 0, 1  # see `interval_is_over`

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.postpone_stop(trainer, batch_idx)
        if not is_resumable(trainer, batch_idx):
            return
        stops = trainer.should_stop or trainer.global_step == trainer.max_steps
        due = self.steps and trainer.global_step % self.steps == 0
        if stops or due or self.interval_is_over(trainer):
            began = time.monotonic()
            save_last(trainer)
            self.cost = time.monotonic() - began
            self.start_clock()

    def postpone_stop(self, trainer: pl.Trainer, batch_idx: int) -> None:
        """Let a run that is out of time, say, go on until accumulated gradients are used."""
        asked = trainer.should_stop or self.postponed
        self.postponed = asked and is_accumulating(trainer, batch_idx)
        trainer.should_stop = asked and not self.postponed

    def interval_is_over(self, trainer: pl.Trainer) -> bool:
        """Whether the time for a checkpoint has come; the same on all ranks.

        Asking the other ranks is slow. They ask again after the predicted number of batches, but at
        the latest when the number of batches done so far has doubled.
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
        # Else saved at the end of the epoch, as are metrics that are only logged there.
        if not trainer.is_last_batch and self.monitor in trainer.callback_metrics:
            self.save_best(trainer)
        if not trainer.is_last_batch and trainer.should_stop:  # ended by EarlyStopping, say
            self.postpone_stop(trainer, trainer.fit_loop.batch_idx)
            if trainer.should_stop:
                save_last(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.save_best(trainer)
            if trainer.is_last_batch:  # else the epoch goes on when the run is continued
                save_last(trainer)

    def save_best(self, trainer: pl.Trainer) -> None:
        known = trainer.callback_metrics
        if self.monitor not in known:
            if not self.validated:
                return
            line = (
                f"callbacks.checkpoint.monitor={self.monitor}: is not among the metrics; try one "
                f"of {', '.join(sorted(known))}"
            )
            if self.monitor != DEFAULT:
                raise UserError(line)
            if not self.warned:  # a module of the user's own, which logs other names
                log.warning("%s; without it only last.ckpt is written", line)
            self.warned = True
            return
        # The ranks may have logged different values, and they write checkpoints together.
        value = trainer.strategy.broadcast(self.sign * known[self.monitor].item())
        if value < self.lowest:
            self.lowest = value
            trainer.save_checkpoint(checkpoint_folder(trainer) / "best.ckpt")

    def state_dict(self) -> dict[str, float]:
        return {"lowest": self.lowest}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.lowest = state["lowest"]

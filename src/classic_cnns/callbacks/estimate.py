"""An estimate of a run's duration, logged during its first seconds."""

import logging
import time
from datetime import timedelta
from math import inf
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Timer

log = logging.getLogger(__name__)


class Estimate(Callback):
    """Logs after 50 steps the speed, the time for an epoch and for the run, and the disk space.

    Nothing is logged for a run of less than a minute. With `only`, it is always logged, and the run
    ends there with SystemExit(0).
    """

    skipped, steps = 10, 50  # the first ones are slower

    def __init__(self, only: bool) -> None:
        self.only, self.count, self.began = only, 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.count, self.began = 0, time.perf_counter()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.count == self.skipped:
            self.began = now(trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.count += 1
        if self.count == self.steps:
            self.log_estimate(trainer, self.steps - self.skipped)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.only and not trainer.sanity_checking and 0 < self.count < self.steps:
            self.log_estimate(trainer, self.count - self.skipped * (self.count > self.skipped))

    on_train_epoch_end = on_validation_start  # a run without validation

    def log_estimate(self, trainer: pl.Trainer, steps: int) -> None:
        each = (now(trainer) - self.began) / steps
        batches: Any = trainer.num_training_batches  # inf if the loader has no length
        epoch = each * batches
        left, name = rest(trainer, each)
        if self.only or left > 60:
            images = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
            speed = f"{images / each:,.0f} images/s" if images else f"{1 / each:,.1f} steps/s"
            times = {"an epoch of training": epoch, name: left}
            known = [f"{format_duration(x)} for {name}" for name, x in times.items() if x < inf]
            states = [trainer.lightning_module.state_dict()]
            states += [s for o in trainer.optimizers for s in o.state.values()]
            tensors = [x for state in states for x in state.values() if torch.is_tensor(x)]
            files = 2 * (2 if hasattr(trainer.strategy, "assemble") else 1)  # a device has a tower
            space = files * sum(x.numel() * x.element_size() for x in tensors)
            parts = [speed, *known, f"{space / 1e6:.1f} MB for checkpoints"]
            log.info("estimate: %s", ", ".join(parts))
        if self.only:
            raise SystemExit(0)


def rest(trainer: pl.Trainer, each: float) -> tuple[float, str]:
    """Seconds until the limit that comes first, with `each` for a batch, and what this limit is."""
    epochs: Any = trainer.max_epochs - trainer.current_epoch  # type: ignore[operator]
    left = each * trainer.num_training_batches * epochs if trainer.max_epochs != -1 else inf
    name = f"{epochs} epochs" if epochs != 1 else "an epoch of training"
    steps = trainer.max_steps - trainer.global_step
    done = trainer.fit_loop.total_batch_idx + 1  # batches, each with any number of steps
    in_steps = each * steps * done / max(1, trainer.global_step)
    if trainer.max_steps != -1 and in_steps < left:
        left, name = in_steps, f"{steps} more step{'s' * (steps != 1)}"
    for timer in (c for c in trainer.callbacks if isinstance(c, Timer)):  # type: ignore
        in_time = timer.time_remaining()
        if in_time is not None and in_time < left:
            left, name = in_time, "the rest of max_time"
    return left, name


def now(trainer: pl.Trainer) -> float:
    """The time in seconds when the device has finished its work."""
    if trainer.strategy.root_device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def format_duration(seconds: float) -> str:
    """A duration as text, for example "2 days, 3:04:05"."""
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))

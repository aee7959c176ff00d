"""What a person sees while it trains: one bar for the whole run and one line for each epoch."""

import logging
import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

log = logging.getLogger(__name__)


class Progress(Callback):
    """The bar moves four times a second at most, and only on a terminal."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.shown = batch_size, 0.0
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            self.bar = tqdm(
                total=trainer.estimated_stepping_batches,
                initial=trainer.global_step,
                unit_scale=self.batch_size,
                unit=" images",
                bar_format="{desc}{percentage:3.0f}% |{bar:24}| {rate_fmt}, {remaining} left",
                disable=not sys.stderr.isatty(),
                leave=False,
            )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        now = time.monotonic()
        if self.bar is not None and now - self.shown > 0.25:
            self.shown = now
            self.bar.set_description_str(f"epoch {trainer.current_epoch + 1} ", refresh=False)
            self.bar.update(trainer.global_step - self.bar.n)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        if self.bar is None:
            return
        self.bar.clear()
        values = module.results
        log.info(
            f"epoch {trainer.current_epoch + 1:3}/{trainer.max_epochs}"
            f"   loss {values['loss/train']:7.4f}"
            f"   error {values['error/train']:6.2%} training {values['error/val']:6.2%} validation"
            f"   {values['speed/images_per_second']:7,.0f} images/s"
        )

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception) -> None:
        self.on_train_end(trainer, module)

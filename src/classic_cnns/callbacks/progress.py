"""Progress on the terminal: one bar for the whole run, and one line for each epoch."""

import logging
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor
from tqdm import tqdm

from classic_cnns.callbacks.history import logged_since
from classic_cnns.report.log import progress_bar

log = logging.getLogger(__name__)


class Progress(ProgressBar):
    """Shows epoch, progress within it, loss, progress of the run, speed and time left.

    The bar is drawn at most four times a second, and only on a terminal or in a notebook.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown = 0.0
        self.bar: tqdm | None = None
        self.earlier: dict[str, Tensor] = {}  # metrics at the start of the epoch

    def disable(self) -> None:
        """Called by Lightning on all ranks but the first."""

    def enable(self) -> None:
        """Called by Lightning's BatchSizeFinder."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        images = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
        steps = trainer.estimated_stepping_batches
        self.bar = progress_bar(
            " images" if images else " steps",
            steps if steps != float("inf") else None,
            initial=trainer.global_step,
            unit_scale=(images or 1) * trainer.accumulate_grad_batches,
            # A narrow terminal cuts off the end.
            bar_format="{desc} |{bar}| {percentage:3.0f}% of all, {remaining} left, {rate_fmt}",
        )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.earlier = dict(trainer.callback_metrics)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        now = time.monotonic()
        if self.bar is None or now - self.shown < 0.25:
            return
        self.shown = now
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        told = ""
        if loss is not None and not self.bar.disable:
            told = f", loss {loss.item() * trainer.accumulate_grad_batches:.4f}"
        part = (batch_idx + 1) / trainer.num_training_batches
        epoch = f"epoch {trainer.current_epoch + 1}: {part:4.0%}{told}"
        self.bar.set_description_str(epoch, refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        values = logged_since(self.earlier, trainer)  # on all ranks, which may have to add them up
        if self.bar is None:
            return
        self.bar.clear()
        total = f"/{trainer.max_epochs}" if trainer.max_epochs != -1 else ""
        log.info(f"epoch {trainer.current_epoch + 1:3}{total}   {summary(values)}")

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()


def summary(values: dict[str, float]) -> str:
    """The metrics of an epoch in one line: the main ones of `Classifier`, or all of others."""
    if not {"loss/train", "error/train"} <= values.keys():
        return "   ".join(f"{name} {value:.4g}" for name, value in sorted(values.items()))
    shown = {"train": "training", "val": "validation"}
    errors = [
        f"{values[f'error/{k}']:6.2%} {n}" for k, n in shown.items() if f"error/{k}" in values
    ]
    speed = values.get("speed/images_per_second", 0)
    return f"loss {values['loss/train']:7.4f}   error {' '.join(errors)}   {speed:7,.0f} images/s"

"""The one LightningModule: a net, its loss, its optimizer and schedule, and what is measured."""

import time
from collections.abc import Callable
from math import isfinite
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from classic_cnns.optim.levenberg_marquardt import StochasticDiagonalLM


class Diverged(Exception):
    """The loss is no longer a finite number; told in one line."""


class Tally(Metric):
    """Loss and errors, summed on the device over batches and ranks, read once an epoch."""

    full_state_update = False
    loss: Tensor
    errors: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss", "errors", "images"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, steps: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Of each step: the mean loss of a batch, scores (B, classes) and labels (B,)."""
        losses, scores, labels = zip(*steps, strict=True)
        counts = torch.tensor([len(part) for part in labels], device=losses[0].device)
        self.loss += (torch.stack(losses) * counts).sum()
        self.errors += (torch.cat(scores).argmax(1) != torch.cat(labels)).sum()
        self.images += counts.sum()

    def compute(self) -> dict[str, float]:
        loss, errors, images = self.loss.item(), self.errors.item(), self.images.item()
        return {
            "loss": loss / images,
            "error": errors / images,
            "accuracy": (images - errors) / images,
        }


class Classifier(pl.LightningModule):
    """Trains `net`, whose scores (B, classes) are highest for the likeliest class.

    `optimizer` and `scheduler` are what is still to be completed: the first with parameters, the
    second, stepped after each batch, with the optimizer and `total_steps`. `results` holds the
    newest value of each metric, as the names in TensorBoard have it.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        optimizer: Callable,
        scheduler: Callable | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.net, self.loss = net, loss
        self.optimizer, self.scheduler = optimizer, scheduler
        self.train_tally, self.val_tally, self.test_tally = Tally(), Tally(), Tally()
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []  # training steps not yet in the tally
        self.results: dict[str, float] = {"time/seconds": 0.0}

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def configure_optimizers(self):
        optimizer = self.optimizer(self.net.named_parameters())
        if self.scheduler is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self.scheduler(optimizer, total_steps=steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def on_train_epoch_start(self) -> None:
        self.train_tally.reset()
        self.seen.clear()
        self.started = time.perf_counter()
        optimizer = self.trainer.optimizers[0]
        if isinstance(optimizer, StochasticDiagonalLM):
            optimizer.estimate(self.net, self.trainer.train_dataloader)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        # What a net draws, as dropout does, follows from here: so a resumed run draws the same.
        key = np.random.SeedSequence((self.seed, self.current_epoch, batch_idx))
        seed = int(key.generate_state(1, np.uint64)[0])
        if images.is_cpu:  # torch.manual_seed takes half a millisecond for a GPU never used
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        scores = self.net(images)
        loss = self.loss(scores, labels)
        self.seen.append((loss.detach(), scores.detach(), labels))
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        trainer: Any = self.trainer
        last = trainer.is_last_batch
        if last or (batch_idx + 1) % trainer.log_every_n_steps == 0:
            self.train_tally.update(self.seen)
            self.seen.clear()
            loss = outputs["loss"].item()
            if not isfinite(loss):
                raise Diverged(f"the loss became {loss} in epoch {self.current_epoch + 1}")
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self.record({"loss/train_step": loss, "optim/lr": rate})
        if last:
            seconds = time.perf_counter() - self.started
            speed = {"speed/images_per_second": float(self.train_tally.images) / seconds}
            self.record(self.measured("train", self.train_tally) | speed)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluate(self.val_tally, *batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluate(self.test_tally, *batch)

    def evaluate(self, tally: Tally, images: Tensor, labels: Tensor) -> None:
        scores = self.net(images)
        tally.update([(self.loss(scores, labels), scores, labels)])

    def on_train_epoch_end(self) -> None:
        self.results["time/seconds"] += time.perf_counter() - self.started

    def on_validation_epoch_end(self) -> None:
        self.record(self.measured("val", self.val_tally))

    def on_test_epoch_end(self) -> None:
        self.record(self.measured("test", self.test_tally))

    def measured(self, split: str, tally: Tally) -> dict[str, float]:
        values = {f"{name}/{split}": value for name, value in tally.compute().items()}
        tally.reset()
        if not isfinite(values[f"loss/{split}"]):
            raise Diverged(f"the {split} loss became {values[f'loss/{split}']}")
        return values

    def record(self, values: dict[str, float]) -> None:
        self.results |= values
        if self.logger:
            self.logger.log_metrics(values, step=self.trainer.fit_loop.epoch_loop.global_step)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["results"] = self.results

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.results = checkpoint["results"]

"""The one LightningModule: a net, its loss, its optimizer and schedule, and what is measured."""

import time
from collections.abc import Callable
from functools import lru_cache
from math import isfinite, log
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric

from classic_cnns.optim.levenberg_marquardt import StochasticDiagonalLM
from classic_cnns.tally import Answers, Tally


class Diverged(Exception):
    """The loss is no longer a finite number; told in one line."""


@lru_cache(maxsize=1)
def step_seeds(seed: int, epoch: int, rank: int, steps: int) -> list[int]:
    """For what a net draws in each step, as dropout does: so a resumed run draws the same."""
    key = np.random.SeedSequence((seed, epoch, rank))
    return key.generate_state(steps, np.uint64).tolist()


class Classifier(pl.LightningModule):
    """Trains `net`, whose scores (B, classes) are highest for the likeliest class.

    `optimizer` and `scheduler` are what is still to be completed: the first with parameters, the
    second with the optimizer and `total_steps`. It is stepped after each batch, or if it waits for
    a plateau after each epoch, with the validation error. `results` holds the newest value of each
    metric, as the names in TensorBoard have it, `answers` those of a test.
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
        self.rank, self.ranks = 0, 1  # of those that share the data
        self.seconds_before = 0.0  # of the epoch under way, spent before it was resumed

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def configure_optimizers(self):
        optimizer = self.optimizer(self.net.named_parameters())
        if self.scheduler is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self.scheduler(optimizer, total_steps=steps)
        config: dict = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):  # stepped here, since Lightning would ask
            config |= {"interval": "epoch", "reduce_on_plateau": False}  # for a metric of self.log
        return [optimizer], [config]

    def setup(self, stage: str) -> None:
        # DDP would send them round at each step.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        if stage == "test":
            self.answers = Answers(self.trainer.datamodule.num_classes)  # type: ignore
        if ranks := self.trainer.distributed_sampler_kwargs:
            self.rank, self.ranks = ranks["rank"], ranks["num_replicas"]
            # Where some ranks have the same images: one group for each set of ranks that share all.
            for metric in (m for m in self.children() if isinstance(m, Metric)):
                metric.process_group = getattr(self.trainer.strategy, "data_group", None)

    def on_train_start(self) -> None:
        self.started = time.perf_counter() - self.seconds_before

    def on_train_epoch_start(self) -> None:
        self.train_tally.reset()
        self.seen.clear()
        self.started = time.perf_counter()
        optimizer = self.trainer.optimizers[0]
        if isinstance(optimizer, StochasticDiagonalLM):
            batches: Any = self.trainer.train_dataloader
            optimizer.estimate(self.net, batches, self.ranks, self.trainer.strategy.reduce)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        steps = int(self.trainer.num_training_batches)
        seed = step_seeds(self.seed, self.current_epoch, self.rank, steps)[batch_idx]
        if images.is_cpu:  # torch.manual_seed takes half a millisecond for a GPU never used
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        if not len(labels):  # the other ranks still wait for this one's gradients
            return torch.stack([0.0 * weight.sum() for weight in self.net.parameters()]).sum()
        scores = self.net(images)
        loss = self.loss(scores, labels)
        self.seen.append((loss.detach(), scores.detach(), labels))
        if self.ranks == 1:
            return loss
        # The ranks' gradients are averaged: this makes it the mean over the images of the batch.
        loader: Any = self.trainer.train_dataloader
        return loss * (self.ranks * len(labels) / loader.size(batch_idx))

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        trainer: Any = self.trainer
        last = trainer.is_last_batch
        if last or (batch_idx + 1) % trainer.log_every_n_steps == 0:
            self.train_tally.update(self.seen)
            self.seen.clear()
            loss = trainer.strategy.reduce(outputs["loss"]).item()  # so all ranks decide alike
            if not isfinite(loss):
                raise Diverged(f"the loss became {loss} in epoch {self.current_epoch + 1}")
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self.record({"loss/train_step": loss, "optim/lr": rate})
        if last:
            seconds = time.perf_counter() - self.started
            speed = {"speed/images_per_second": self.train_tally.sums()["images"] / seconds}
            self.record(self.measured("train", self.train_tally) | speed)

    def on_validation_start(self) -> None:
        """What a net has learnt into buffers, as batch normalisation does, is that of rank 0."""
        if self.ranks > 1:
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluate(self.val_tally, *batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        one = images if images.dim() == 4 else images[:, 4]  # of nine and of ten patches the middle
        self.answers.update(one, self.evaluate(self.test_tally, images, labels), labels)

    def evaluate(self, tally: Tally, images: Tensor, labels: Tensor) -> Tensor:
        """The answers (B,), after they were added to the tally."""
        if not len(labels):
            tally.update([])
            return labels
        scores = self.net(images) if images.dim() == 4 else self.judged_together(images)
        tally.update([(self.loss(scores, labels), scores, labels)])
        return scores.argmax(1)

    def judged_together(self, patches: Tensor) -> Tensor:
        """Logarithm of the softmax averaged over the patches of an image (B, V, C, H, W)."""
        views = [self.net(part).float().log_softmax(1) for part in patches.unbind(1)]
        return torch.stack(views).logsumexp(0) - log(len(views))  # (B, classes)

    def on_train_epoch_end(self) -> None:
        self.results["time/seconds"] += time.perf_counter() - self.started
        if isinstance(scheduler := self.lr_schedulers(), ReduceLROnPlateau):
            scheduler.step(self.results["error/val"])

    def on_validation_epoch_end(self) -> None:
        self.record(self.measured("val", self.val_tally))

    def on_test_epoch_end(self) -> None:
        self.record(self.measured("test", self.test_tally))
        self.answers.compute()  # over all ranks, of which only the first shows it

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
        self.train_tally.update(self.seen)
        self.seen.clear()
        seconds = time.perf_counter() - self.started
        checkpoint["results"] = self.results
        checkpoint["epoch_under_way"] = {"seconds": seconds, "sums": self.train_tally.sums()}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.results = checkpoint["results"]
        under_way = checkpoint["epoch_under_way"]
        self.seconds_before = under_way["seconds"]
        if self.rank == 0:  # the ranks' sums are added up
            for name, value in under_way["sums"].items():
                getattr(self.train_tally, name).fill_(value)

"""The LightningModule of this project's nets: a net, its loss, its optimizer, and its metrics."""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import ceil, inf, isfinite, log
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric, Metric
from typing_extensions import Self

from classic_cnns import UserError
from classic_cnns.config.stored import checked, read_config
from classic_cnns.data.preprocessing import Preprocessing
from classic_cnns.optim.levenberg_marquardt import StochasticDiagonalLM
from classic_cnns.trainer.checkpoint_io import read_checkpoint

# 64 bits hold any sum of mean losses exactly, whatever its order: ranks and resumed runs get the
# loss of one undisturbed process to the last bit. Apple's GPUs lack them.
EXACT = torch.float32 if torch.backends.mps.is_available() else torch.float64


CENTRE = 4  # of the nine patches of a test, and of the ten


class Diverged(Exception):
    """The loss is no longer a finite number; told in one line."""


@lru_cache(maxsize=1)
def step_seeds(seed: int, epoch: int, rank: int, steps: int) -> list[int]:
    """For what a net draws in each step, as dropout does: so a resumed run draws the same."""
    key = np.random.SeedSequence((seed, epoch, rank))
    return key.generate_state(steps, np.uint64).tolist()


def vote(views: Sequence[Tensor]) -> Tensor:
    """Logarithm of the softmax (B, classes) averaged over the scores of several views."""
    each = torch.stack([scores.float().log_softmax(1) for scores in views])
    return each.logsumexp(0) - log(len(views))


class ExactMean(MeanMetric):
    """Torchmetrics' mean in float64, in which `.to(device)` does not forget the dtype.

    inf stands in place of nan, which torchmetrics would leave out: a mean that is not finite tells.
    """

    def __init__(self) -> None:
        super().__init__(inf)
        self.set_dtype(EXACT)

    @property
    def dtype(self) -> torch.dtype:
        return EXACT


class SplitMetrics(nn.Module):
    """Mean loss, error and, with `top5`, top-5 error of a split, over batches and ranks.

    Means in float64 are exact for these; torchmetrics' accuracies divide in float32. Steps are
    kept and counted several at a time: that costs a tenth of counting each by itself.
    """

    def __init__(self, top5: bool) -> None:
        super().__init__()
        names = ["loss", "error", "accuracy", *(["top5_error"] if top5 else [])]
        self.means: Any = nn.ModuleDict({name: ExactMean() for name in names})
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []  # not yet counted

    def add(self, loss: Tensor, scores: Tensor, labels: Tensor) -> None:
        """The mean loss () of a batch, its scores (B, classes) and labels (B,)."""
        # A copy, since a net that was recorded as a CUDA graph writes its scores in one place.
        self.steps.append((loss.detach(), scores.detach().clone(), labels))

    def count(self) -> None:
        if not self.steps:
            return
        losses, scores, labels = zip(*self.steps, strict=True)
        self.steps.clear()
        counts = torch.tensor([len(part) for part in labels], device=losses[0].device)
        self.means["loss"].update(torch.stack(losses), counts)
        ranked, truth = torch.cat(scores), torch.cat(labels)
        hits = ranked.argmax(1) == truth
        self.means["error"].update(~hits)
        self.means["accuracy"].update(hits)
        if "top5_error" in self.means:
            five = ranked.topk(min(5, ranked.shape[1]), 1).indices
            self.means["top5_error"].update((five != truth[:, None]).all(1))

    def reset(self) -> None:
        self.steps.clear()
        for mean in self.metrics():
            mean.reset()

    def metrics(self) -> list[MeanMetric]:
        return list(self.means.values())

    def sums(self) -> dict[str, list[float]]:
        """Sum and weight of each mean so far, over all ranks, which all have to ask."""
        self.count()
        found = {}
        for name, mean in self.means.items():
            with mean.sync_context():
                found[name] = [mean.mean_value.item(), mean.weight.item()]
        return found

    def load_sums(self, sums: dict[str, Any]) -> None:
        """What `sums` gave."""
        for name, (total, weight) in sums.items():
            if weight and name in self.means:
                mean: Any = self.means[name]
                mean.update(0.0, weight)
                mean.mean_value.fill_(total)


class Classifier(pl.LightningModule):
    """Trains `net`, whose scores (B, classes) are highest for the likeliest class.

    `loss` takes scores and labels (B,) to a scalar, the mean over the batch. `optimizer` and
    `scheduler` are what is still to be completed: the first with the net's named parameters, the
    second with the optimizer and `total_steps`, those of `schedule_epochs` epochs, after which the
    rate stays. It is stepped after each batch, or if it waits for a plateau after each epoch, with
    the validation error. A batch is images (B, C, H, W), or in a test (B, V, C, H, W), whose V
    patches share a vote, and labels (B,). Logs `loss/`, `error/` and `accuracy/` of train, val and
    test, with `top5` also `top5_error/`, and where patches vote those of the middle one alone as
    `test_centre`.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        optimizer: Callable,
        scheduler: Callable | None = None,
        *,
        seed: int = 0,
        num_classes: int | None = None,
        top5: bool = False,
        schedule_epochs: int | None = None,
    ) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed, self.num_classes, self.schedule_epochs = seed, num_classes, schedule_epochs
        self.train_metrics, self.val_metrics, self.test_metrics, self.centre_metrics = (
            SplitMetrics(top5) for _ in range(4)
        )
        self.voted = False  # in this test
        self.schedule_steps: float = inf  # of the optimizer, once there is a schedule
        self.rank, self.ranks = 0, 1  # of those that share the data
        self.loaded_sums: dict[str, Any] = {}  # of an epoch that goes on
        self.validated = False  # in this epoch
        self.preprocessing: Preprocessing | None = None  # once it is loaded to be used
        self.images = 0  # of this epoch, on this rank, since its last start
        self.waited = 0.0  # seconds for data in it
        self.asked = inf  # when the next data were asked for

    @property
    def metric_names(self) -> list[str]:
        """What callbacks can monitor after a validation."""
        names = self.train_metrics.means
        return [f"{name}/{split}" for split in ("train", "val") for name in names]

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), or patches of them (B, V, C, H, W), to scores (B, classes)."""
        return self.net(images) if images.dim() == 4 else vote(self.views(images))

    def views(self, patches: Tensor) -> list[Tensor]:
        """The scores (B, classes) of each patch of (B, V, C, H, W)."""
        return [self.net(part) for part in patches.unbind(1)]

    # --- Use -------------------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: Any, map_location: Any = None, hparams_file: Any = None,
        strict: bool | None = None, weights_only: bool | None = True, *,
        trust: Sequence[str] = (), config: Any = None, **parts: Any,
    ) -> Self:  # fmt: skip
        """The module of a checkpoint, in eval mode, as its hyperparameters describe it.

        These are the config of its run, in whose place `config` is taken, or a `config.yaml`;
        `parts` are arguments of this class. Code that they name is of this project, of torch, of
        Lightning, or of a package in `trust`, and nothing is unpickled, whatever `weights_only`
        says. Raises UserError for what is no such checkpoint.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location or "cpu")
        if config is None and hparams_file:
            config = read_config(Path(hparams_file), trust)
        elif config is None:
            config = checked(checkpoint.get("hyper_parameters"), checkpoint_path, trust)
        try:
            given: dict[str, Any] = {
                name: instantiate(config.model[name]) for name in ("net", "loss")
            }
            given |= {name: instantiate(config.optim[name]) for name in ("optimizer", "scheduler")}
            module = cls(**given | {"seed": config.seed} | parts)
            module.load_state_dict(checkpoint["state_dict"], strict is not False)
            if stored := checkpoint.get("preprocessing"):
                mean = stored["mean"] if stored["mean"] is None else stored["mean"].clone()
                module.preprocessing = Preprocessing(**stored | {"mean": mean})
        except Exception as error:  # a file from elsewhere holds anything
            line = " ".join(str(error.__cause__ or error).split())[:300]
            raise UserError(f"{checkpoint_path}: cannot be made into a net: {line}") from error
        module.save_hyperparameters(OmegaConf.to_container(config), logger=False)
        return module.to(
            map_location if isinstance(map_location, (str, torch.device)) else "cpu"
        ).eval()

    @property
    def classes(self) -> list[str]:
        """What the scores are of."""
        return self.prepared.classes

    @property
    def prepared(self) -> Preprocessing:
        if self.preprocessing is None:
            raise UserError("this net was trained on data of which no preprocessing is known")
        return self.preprocessing

    def preprocess(self, pictures: Any) -> Tensor:
        """Pictures as the net takes them, float32 (N, C, H, W), or patches (N, V, C, H, W).

        `pictures` is one or a list: paths, PIL images, uint8 arrays (H, W) or (H, W, C), tensors
        (C, H, W); of any size. Raises UserError for what is no picture.
        """
        several = pictures if isinstance(pictures, (list, tuple)) else [pictures]
        pixels = [self.prepared.read(picture)[0] for picture in several]
        return self.prepared(torch.from_numpy(np.stack(pixels)).to(self.device))

    @torch.no_grad()
    def probabilities(self, pictures: Any) -> Tensor:
        """Of each class for each picture: (N, classes)."""
        return self(self.preprocess(pictures)).float().softmax(1)

    def predict(self, pictures: Any) -> list[str]:
        """The likeliest class of each picture."""
        return [self.classes[number] for number in self.probabilities(pictures).argmax(1).tolist()]

    # --- Optimization ----------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.net.named_parameters())
        if self.scheduler is None:
            return optimizer
        self.schedule_steps = self.total_steps()
        scheduler = self.scheduler(optimizer, total_steps=self.schedule_steps)
        config: dict = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config |= {"interval": "epoch", "monitor": "error/val", "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def total_steps(self) -> int:
        """Of the optimizer, over the epochs of the schedule."""
        trainer = self.trainer
        expected = trainer.estimated_stepping_batches
        if self.schedule_epochs in (None, trainer.max_epochs):
            return int(expected)
        each = ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        return each * self.schedule_epochs  # type: ignore[operator]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if isinstance(scheduler, ReduceLROnPlateau):
            return  # stepped at the end of the epoch, so that its checkpoint has it
        if scheduler.last_epoch < self.schedule_steps - 1:  # then the rate stays
            scheduler.step()

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ) -> None:
        strategy, plugin = self.trainer.strategy, self.trainer.precision_plugin
        if hasattr(strategy, "clip_gradients"):  # the norm of a net in two towers is that of both
            strategy.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val and self.trainer.precision == "bf16-mixed":
            # Lightning refuses fused optimizers, though only float16 has scaled gradients.
            norm = gradient_clip_algorithm != "value"
            clip = plugin.clip_grad_by_norm if norm else plugin.clip_grad_by_value
            clip(optimizer, gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # --- Training --------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if ranks := self.trainer.distributed_sampler_kwargs:
            self.rank, self.ranks = ranks["rank"], ranks["num_replicas"]
            # Where some ranks have the same images: one group for each set of ranks that share all.
            for metric in (m for m in self.modules() if isinstance(m, Metric)):
                metric.process_group = getattr(self.trainer.strategy, "data_group", None)

    def on_train_start(self) -> None:
        self.start_clock()
        if self.rank == 0:  # the ranks' sums are added up
            self.train_metrics.load_sums(self.loaded_sums)

    def on_train_epoch_start(self) -> None:
        self.train_metrics.reset()
        self.validated = False
        self.start_clock()
        optimizer = self.trainer.optimizers[0]
        if isinstance(optimizer, StochasticDiagonalLM):
            batches: Any = self.trainer.train_dataloader
            optimizer.estimate(self.net, batches, self.ranks, self.trainer.strategy.reduce)
            self.asked = time.perf_counter()

    def start_clock(self) -> None:
        self.images, self.waited, self.started = 0, 0.0, time.perf_counter()
        self.asked = self.started

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.waited += max(0.0, time.perf_counter() - self.asked)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.seed_step(batch_idx, images.is_cpu)
        if not len(labels):  # the other ranks still wait for this one's gradients
            return torch.stack([0.0 * weight.sum() for weight in self.net.parameters()]).sum()
        scores = self.net(images)
        loss = self.loss(scores, labels)
        self.train_metrics.add(loss, scores, labels)
        self.images += len(labels)
        if self.ranks == 1:
            return loss
        # The ranks' gradients are averaged: this makes it the mean over the images of the batch.
        loader: Any = self.trainer.train_dataloader
        size = loader.size(batch_idx) if hasattr(loader, "size") else self.ranks * len(labels)
        return loss * (self.ranks * len(labels) / size)

    def seed_step(self, batch_idx: int, on_cpu: bool) -> None:
        steps = self.trainer.num_training_batches
        if steps == inf:
            return  # a loader without a length: nothing to draw the seeds of
        seed = step_seeds(self.seed, self.current_epoch, self.rank, int(steps))[batch_idx]
        if on_cpu:  # torch.manual_seed takes half a millisecond for a GPU never used
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        trainer: Any = self.trainer
        last = trainer.is_last_batch or trainer.should_stop
        last = last or trainer.global_step == trainer.max_steps
        if trainer.global_step % trainer.log_every_n_steps == 0 or last:
            loss: Any = trainer.strategy.reduce(outputs["loss"])  # so that all ranks decide alike
            if not isfinite(loss.item()):
                raise Diverged(f"the loss became {loss.item()} in epoch {self.current_epoch + 1}")
            rate = torch.tensor(trainer.optimizers[0].param_groups[0]["lr"], dtype=EXACT)
            self.log_dict({"loss/train_step": loss, "optim/lr": rate}, on_epoch=False)
            self.train_metrics.count()
        if last:
            self.log_metrics("train", self.train_metrics)
            seconds = time.perf_counter() - self.started
            speed = {"images_per_second": self.images * self.ranks / seconds}
            speed["data_wait"] = self.waited / seconds  # the share of the time
            self.log_dict(
                {f"speed/{name}": value for name, value in speed.items()},
                on_step=False, on_epoch=True, batch_size=1, sync_dist=trainer.world_size > 1,
            )  # fmt: skip
        self.asked = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau) and self.validated:
            scheduler.step(self.trainer.callback_metrics["error/val"].item())

    # --- Evaluation ------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()
        self.centre_metrics.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.evaluate(self.val_metrics, *batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.voted = images.dim() == 5
        if not self.voted or not len(labels):
            return self.evaluate(self.test_metrics, images, labels)
        views = self.views(images)
        self.measure(self.centre_metrics, views[CENTRE], labels)
        return self.measure(self.test_metrics, vote(views), labels)

    def evaluate(self, metrics: SplitMetrics, images: Tensor, labels: Tensor) -> Tensor:
        """The answers (B,), after they were added to the metrics of a split."""
        return self.measure(metrics, self.net(images), labels) if len(labels) else labels

    def measure(self, metrics: SplitMetrics, scores: Tensor, labels: Tensor) -> Tensor:
        metrics.add(self.loss(scores, labels), scores, labels)
        return scores.argmax(1)

    def on_validation_epoch_end(self) -> None:
        self.validated = True
        self.asked = time.perf_counter()  # it is not data that the next step has waited for
        self.log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test", self.test_metrics)
        if self.voted:
            self.log_metrics("test_centre", self.centre_metrics)

    # --- Metrics ---------------------------------------------------------------------------------

    def log_metrics(self, split: str, metrics: SplitMetrics) -> None:
        """Lightning reads them at the end of the epoch, over all ranks, and resets them."""
        metrics.count()
        loss = metrics.means["loss"].compute().item()
        if not isfinite(loss):
            raise Diverged(f"the {split} loss became {loss}")
        for name, mean in metrics.means.items():
            self.log(f"{name}/{split}", mean, on_step=False, on_epoch=True, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["train_sums"] = self.train_metrics.sums()
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "preprocessing"):
            checkpoint["preprocessing"] = data.preprocessing.stored()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.loaded_sums = checkpoint.get("train_sums", {})

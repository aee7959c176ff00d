"""The LightningModule of this project's nets: net, loss, optimizer and metrics."""

import inspect
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import lru_cache
from math import ceil, inf, isfinite, log
from os.path import commonprefix
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric, Metric
from typing_extensions import Self

from classic_cnns import UserError, one_line
from classic_cnns.config.stored import checked_config, read_config
from classic_cnns.config.trust import check_stored, is_trusted, nodes
from classic_cnns.data.folders import first_five
from classic_cnns.data.preprocessing import Preprocessing
from classic_cnns.optim.levenberg_marquardt import StochasticDiagonalLM
from classic_cnns.trainer.checkpoint_io import read_checkpoint

# float64 represents every sum of mean losses exactly in any order, so ranks and resumed runs report
# the loss of one uninterrupted process to the last bit. Apple's GPUs do not support it.
EXACT = torch.float32 if torch.backends.mps.is_available() else torch.float64

MAX_PARAMETERS = 10_000  # tensors of a net in a config from elsewhere
COLLECTED = 50  # steps whose scores are kept until they are counted
CENTRAL_PATCH = 4  # index of the central one of nine or ten test patches


class Diverged(Exception):
    """The loss is not a finite number."""


@lru_cache(maxsize=1)
def step_seeds(seed: int, epoch: int, rank: int, steps: int) -> list[int]:
    """Seeds for the random draws of each step (dropout), so that a resumed run repeats them."""
    key = np.random.SeedSequence((seed, epoch, rank))
    return key.generate_state(steps, np.uint64).tolist()


def check_fits(config: Any, state: dict[str, Tensor], strict: bool = True) -> None:
    """Raise RuntimeError if the weights do not fit the net and the loss of a stored config.

    Both are built on the meta device, without memory, since a config from elsewhere may describe a
    net of any size. Classes of packages that the user trusts may not support that device.
    """
    count = itertools.count(1)

    def limit(module: nn.Module, name: str, parameter: Any) -> None:
        if next(count) > MAX_PARAMETERS:
            raise RuntimeError(f"the net has more than {MAX_PARAMETERS:,} weights and biases")

    values = nodes(OmegaConf.to_container(config.model))
    targets = (str(value) for key, value in values if key.endswith("_target_"))
    device = torch.device("meta" if all(map(is_trusted, targets)) else "cpu")
    with device, register_module_parameter_registration_hook(limit):
        made = {name: instantiate(config.model[name]) for name in ("net", "loss")}
    parts = nn.ModuleDict(made)
    # A copy, since with `assign` torch writes into the metadata of the state.
    parts.load_state_dict(dict(state), strict, assign=True)


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Put a net into evaluation mode; afterwards each layer has its own mode again."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def takes_total_steps(scheduler: Callable) -> bool:
    """Whether a scheduler takes the number of steps; then it is stepped after each batch."""
    known = inspect.signature(scheduler).parameters
    return "total_steps" in known or any(x.kind is x.VAR_KEYWORD for x in known.values())


def other_classes(has: Sequence[str], takes: Sequence[str]) -> str:
    """How the classes of data differ from those that a net was trained with; else an empty text."""
    if list(has) == list(takes):
        return ""
    equal = len(commonprefix([list(has), list(takes)]))
    shown = [first_five(names[equal:]) or "none" for names in (has, takes)]
    after = f"after {equal} equal ones " * (equal > 0)
    return f"data: {after}its classes are {shown[0]}, and the run was trained with {shown[1]}"


def average_softmax(views: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean softmax (B, classes) over the scores of several patches."""
    each = torch.stack([scores.float().log_softmax(1) for scores in views])
    return each.logsumexp(0) - log(len(views))


class ExactMean(MeanMetric):
    """Torchmetrics' mean in float64; `.to(device)` keeps the dtype.

    nan is replaced by inf, since torchmetrics ignores nan and a divergence would go unnoticed.
    """

    def __init__(self) -> None:
        super().__init__(inf)
        self.set_dtype(EXACT)

    @property
    def dtype(self) -> torch.dtype:
        return EXACT


class SplitMetrics(nn.Module):
    """Mean loss, error, accuracy and, with `top5`, top-5 error of a split over batches and ranks.

    Means in float64 are exact; torchmetrics' accuracies divide in float32. Several steps are
    collected before they are counted, which takes a tenth of the time of counting each by itself.
    """

    def __init__(self, top5: bool) -> None:
        super().__init__()
        names = ["loss", "error", "accuracy", *(["top5_error"] if top5 else [])]
        self.means: Any = nn.ModuleDict({name: ExactMean() for name in names})
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []  # collected, not counted

    def add(self, loss: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss (), scores (B, classes) and labels (B,)."""
        # A copy, since a net recorded as a CUDA graph always writes its scores to the same memory.
        self.steps.append((loss.detach(), scores.detach().clone(), labels))
        if len(self.steps) == COLLECTED:
            self.count()

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
        for mean in self.means.values():
            mean.reset()

    def sums(self) -> dict[str, list[float]]:
        """Sum and weight of each mean over all ranks; all ranks must call it."""
        self.count()
        found = {}
        for name, mean in self.means.items():
            with mean.sync_context():
                found[name] = [mean.mean_value.item(), mean.weight.item()]
        return found

    def load_sums(self, sums: dict[str, Any]) -> None:
        """Continue from the result of `sums`."""
        for name, (total, weight) in sums.items():
            mean: Any = self.means[name]
            mean.update(0.0, weight)
            mean.mean_value.fill_(total)


class Classifier(pl.LightningModule):
    """Trains a `net` that returns scores (B, classes), the highest for the most probable class.

    `loss` maps scores and labels (B,) to a scalar, the mean over the batch. `optimizer` and
    `scheduler` are partial: the first is called with the net's named parameters, the second with
    the optimizer. A scheduler with an argument `total_steps` is also given the number of steps in
    `schedule_epochs` epochs, after which the rate stays constant, and is stepped after each batch;
    others are stepped after each epoch, ReduceLROnPlateau with the validation error. A batch is
    images (B, C, H, W) and labels (B,); in a test also patches (B, V, C, H, W), whose predictions
    are averaged. Logs `loss/`, `error/` and `accuracy/` of train, val and test, with `top5` also
    `top5_error/` (None: for more than ten classes), and for patches those of the central one alone
    as `test_centre`.
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
        top5: bool | None = None,
        schedule_epochs: int | None = None,
    ) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed, self.num_classes, self.schedule_epochs = seed, num_classes, schedule_epochs
        top5 = (num_classes or 0) > 10 if top5 is None else top5
        self.train_metrics, self.val_metrics, self.test_metrics, self.centre_metrics = (
            SplitMetrics(top5) for _ in range(4)
        )
        self.has_patches = False  # several patches in this test
        self.schedule_steps: float = inf  # set when the scheduler is created
        self.rank, self.ranks = 0, 1  # of the ranks that share the data
        self.rate: Any = 0.0  # learning rate of the current step
        self.resumed_sums: dict[str, Any] = {}  # of an epoch to be resumed
        self.val_error: float | None = None  # measured in this epoch
        self.logged = False  # the training metrics of this epoch
        self.preprocessing: Preprocessing | None = None  # set when loaded from a checkpoint
        self.start_clock()

    @property
    def metric_names(self) -> list[str]:
        """The metrics that callbacks can monitor after a validation."""
        names = self.train_metrics.means
        return [f"{name}/{split}" for split in ("train", "val") for name in names]

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets almost 50 attributes in a step. torch looks for parameters among them,
        # which takes about a percent of a LeNet-5 step.
        if name in self.__dict__ and not isinstance(value, (Tensor, nn.Module)):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Convert or move net and loss; the sums of metrics stay exact, also with bf16-true."""
        super().to(*args, **kwargs)
        for mean in (m for m in self.modules() if isinstance(m, ExactMean)):
            mean.set_dtype(EXACT)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, classes) of images (B, C, H, W) or of patches (B, V, C, H, W)."""
        return self.net(images) if images.dim() == 4 else average_softmax(self.patch_scores(images))

    def patch_scores(self, patches: Tensor) -> list[Tensor]:
        """The scores (B, classes) of each patch of (B, V, C, H, W)."""
        # Copies, since a CUDA graph writes the scores of all patches to the same memory.
        return [self.net(part).clone() for part in patches.unbind(1)]

    # --- Use -------------------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: Any, map_location: Any = None, hparams_file: Any = None,
        strict: bool | None = None, weights_only: bool | None = True, *,
        trust: Sequence[str] = (), config: Any = None, **parts: Any,
    ) -> Self:  # fmt: skip
        """The module of a checkpoint in eval mode, built from its hyperparameters.

        They are the config of its run; `config`, or the file `hparams_file`, replaces it. `parts`
        are arguments of this class. The config may use code of this project, of torch, of Lightning
        and of the packages in `trust`. Nothing is unpickled, whatever `weights_only` is. Raises
        UserError if the file is not such a checkpoint.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location or "cpu")
        if config is None and hparams_file:
            config = read_config(Path(hparams_file), trust)
        elif config is None:
            config = checked_config(checkpoint.get("hyper_parameters"), checkpoint_path, trust)
        try:
            if "net" not in parts:
                check_fits(config, checkpoint["state_dict"], strict is not False)
            given = {name: instantiate(config.model[name]) for name in ("net", "loss")}
            given |= {name: instantiate(config.optim[name]) for name in ("optimizer", "scheduler")}
            classes, top5 = config.get("data", {}).get("num_classes"), config.get("top5_error")
            given |= {"seed": config.seed, "num_classes": classes, "top5": top5}
            module = cls(**given | parts)
            module.load_state_dict(checkpoint["state_dict"], strict is not False)
            if stored := checkpoint.get("preprocessing"):
                sizes = {
                    "data": {"size": stored.get("image_size")},
                    "model": {"input": {"size": stored.get("size")}},
                }
                check_stored(sizes, checkpoint_path)
                module.preprocessing = Preprocessing(**deepcopy(stored))  # not of the mapped file
        except Exception as error:  # a file from elsewhere can contain anything
            line = one_line(error.__cause__ or error)[:300]
            raise UserError(f"{checkpoint_path}: no net can be built from it: {line}") from error
        module.save_hyperparameters(OmegaConf.to_container(config), logger=False)
        return module.to(
            map_location if isinstance(map_location, (str, torch.device)) else "cpu"
        ).eval()

    @property
    def classes(self) -> list[str]:
        return self.prepared.classes

    @property
    def prepared(self) -> Preprocessing:
        found = self.preprocessing
        with suppress(AttributeError, RuntimeError):  # not yet trained, or with other data
            found = found or self.trainer.datamodule.preprocessing  # type: ignore[attr-defined]
        if found is None:
            raise UserError(
                "the net has no preprocessing, since it is not trained or its data module is not "
                "of this project; call the net itself from Python, on inputs of your own"
            )
        return found.to(self.device)

    def preprocess(self, pictures: Any) -> Tensor:
        """Inputs of the net for pictures: float32 (N, C, H, W), or patches (N, V, C, H, W).

        `pictures` is one or a list of paths, PIL images, uint8 arrays (H, W) or (H, W, C), or
        tensors (C, H, W), of any size, or one such array or tensor with a dimension N before. Of
        arrays of three dimensions, those with more than 4 in the last are (N, H, W).
        Raises UserError for anything else.
        """
        shape: Any = getattr(pictures, "shape", ())
        grey = isinstance(pictures, np.ndarray) and len(shape) == 3 and shape[2] > 4  # (N, H, W)
        many = isinstance(pictures, (list, tuple)) or len(shape) == 4 or grey
        several = pictures if many else [pictures]
        if not len(several):
            raise UserError("no picture was given; there must be at least one")
        pixels = [self.prepared.read(picture)[0] for picture in several]
        return self.prepared(torch.from_numpy(np.stack(pixels)).to(self.device))

    @torch.no_grad()
    def probabilities(self, pictures: Any) -> Tensor:
        """The probability of each class for each picture: (N, classes); in eval mode."""
        weight = next(self.net.parameters())  # of a net in half or double precision
        with eval_mode(self):
            scores = self(self.preprocess(pictures).to(weight.dtype))
        return scores.float().softmax(1)

    def predict(self, pictures: Any) -> list[str]:
        """The most probable class of each picture."""
        return [self.classes[number] for number in self.probabilities(pictures).argmax(1).tolist()]

    # --- Optimization ----------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.net.named_parameters())
        if self.scheduler is None:
            return optimizer
        if per_step := takes_total_steps(self.scheduler):
            self.schedule_steps = self.total_steps()
            scheduler = self.scheduler(optimizer, total_steps=self.schedule_steps)
        else:
            scheduler = self.scheduler(optimizer)
        config: dict = {"scheduler": scheduler, "interval": "step" if per_step else "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config |= {"interval": "epoch", "monitor": "error/val", "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def total_steps(self) -> int:
        """The number of optimizer steps in the epochs of the schedule."""
        trainer: Any = self.trainer
        expected = trainer.estimated_stepping_batches
        endless = trainer.num_training_batches == inf and trainer.limit_train_batches != 0
        if endless and trainer.max_steps == -1:
            raise UserError(
                "optim.scheduler: needs a number of steps, and the DataLoader has no length; try "
                "+trainer.max_steps=1000, +trainer.limit_train_batches=100, or optim.scheduler=null"
            )
        epochs, batches = self.schedule_epochs or trainer.max_epochs, trainer.num_training_batches
        changes = [c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]
        if batches != inf and epochs > 0 and (changes or epochs != trainer.max_epochs):
            every = [trainer.accumulate_grad_batches] * epochs
            if changes:
                every = [changes[0].get_accumulate_grad_batches(epoch) for epoch in range(epochs)]
            expected = sum(ceil(batches / accumulated) for accumulated in every)
        steps = max(1, int(expected))  # there are none with limit_train_batches=0
        one_cycle = getattr(self.scheduler, "keywords", {})
        # torch's OneCycleLR divides by zero if its first phase has one step
        return steps + (one_cycle.get("pct_start", 0) * steps == 1)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if isinstance(scheduler, ReduceLROnPlateau):
            return  # stepped in on_train_epoch_end, before the checkpoint
        # The schedule of a run that is continued for more steps has its own number of steps.
        steps = min(self.schedule_steps, getattr(scheduler, "total_steps", inf))
        # Then the rate is constant. ChainedScheduler has no count.
        if getattr(scheduler, "last_epoch", -1) < steps - 1:
            scheduler.step()

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ) -> None:
        strategy, plugin = self.trainer.strategy, self.trainer.precision_plugin
        if hasattr(strategy, "clip_gradients"):  # the norm is over both towers
            strategy.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val and self.trainer.precision == "bf16-mixed":
            # Lightning refuses fused optimizers here, although only float16 scales gradients.
            norm = gradient_clip_algorithm != "value"
            clip = plugin.clip_grad_by_norm if norm else plugin.clip_grad_by_value
            clip(optimizer, gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # --- Training --------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if ranks := self.trainer.distributed_sampler_kwargs:
            self.rank, self.ranks = ranks["rank"], ranks["num_replicas"]
            # Two towers see the same images: sum over one rank of each pair.
            for metric in (m for m in self.modules() if isinstance(m, Metric)):
                metric.process_group = getattr(self.trainer.strategy, "data_group", None)

    def on_train_start(self) -> None:
        self.start_clock()
        if self.rank == 0:  # sums are added over the ranks
            self.train_metrics.load_sums(self.resumed_sums)

    def on_train_epoch_start(self) -> None:
        self.train_metrics.reset()
        self.val_error, self.logged = None, False
        self.start_clock()
        optimizer = self.trainer.optimizers[0]
        if isinstance(optimizer, StochasticDiagonalLM):
            batches: Any = self.trainer.train_dataloader
            convert = self.trainer.precision_plugin.convert_input
            optimizer.estimate(
                self.net, map(convert, batches), self.ranks, self.trainer.strategy.reduce
            )
            self.requested = time.perf_counter()

    def start_clock(self) -> None:
        self.images = 0  # trained in this epoch, on this rank
        self.waiting_seconds = 0.0  # of waiting for data in this epoch
        self.started = self.requested = time.perf_counter()  # the epoch, and the next batch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.waiting_seconds += time.perf_counter() - self.requested
        # Lightning steps schedules before on_train_batch_end.
        self.rate = self.trainer.optimizers[0].param_groups[0]["lr"]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.seed_step(batch_idx, images.is_cpu)
        if not len(labels):  # the other ranks wait for gradients of this one
            return torch.stack([0.0 * weight.sum() for weight in self.net.parameters()]).sum()
        scores = self.net(images)
        loss = self.loss(scores, labels)
        self.train_metrics.add(loss, scores, labels)
        self.images += len(labels)
        if self.ranks == 1:
            return loss
        # DDP averages over ranks; the factor makes it the mean over the batch's images.
        loader: Any = self.trainer.train_dataloader
        size = loader.size(batch_idx) if hasattr(loader, "size") else self.ranks * len(labels)
        return loss * (self.ranks * len(labels) / size)

    def seed_step(self, batch_idx: int, on_cpu: bool) -> None:
        steps = self.trainer.num_training_batches
        if steps == inf:
            return  # a loader without a length
        seed = step_seeds(self.seed, self.current_epoch, self.rank, int(steps))[batch_idx]
        if on_cpu:  # torch.manual_seed takes half a millisecond if a GPU exists
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        trainer: Any = self.trainer
        last = trainer.is_last_batch or trainer.should_stop
        last = last or trainer.global_step == trainer.max_steps
        if trainer.global_step % trainer.log_every_n_steps == 0 or last:
            # Lightning has divided it by the number of batches in a step.
            loss: Any = outputs["loss"] * trainer.accumulate_grad_batches
            loss = trainer.strategy.reduce(loss)  # all ranks decide alike
            if not isfinite(loss.item()):
                raise Diverged(f"the loss became {loss.item()} in epoch {self.current_epoch + 1}")
            rate = torch.tensor(self.rate, dtype=EXACT)
            self.log_dict({"loss/train_step": loss, "optim/lr": rate}, on_epoch=False)
        if last:
            self.log_training()
        self.requested = time.perf_counter()

    def log_training(self) -> None:
        self.logged = True
        self.log_metrics("train", self.train_metrics)
        seconds = time.perf_counter() - self.started
        speed = {"images_per_second": self.images * self.ranks / seconds}
        speed["data_wait"] = self.waiting_seconds / seconds  # share of the time, 0 to 1
        self.log_dict(
            {f"speed/{name}": value for name, value in speed.items()},
            on_step=False, on_epoch=True, batch_size=1, sync_dist=self.trainer.world_size > 1,
        )  # fmt: skip

    def on_train_epoch_end(self) -> None:
        if not self.logged:  # a callback stopped the run after a validation within the epoch
            self.log_training()
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau) and self.val_error is not None:
            scheduler.step(self.val_error)

    # --- Evaluation ------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()
        self.centre_metrics.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return self.measure(self.val_metrics, self.net(images), labels) if len(labels) else labels

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.has_patches = images.dim() == 5
        if not len(labels):
            return labels
        if not self.has_patches:
            return self.measure(self.test_metrics, self.net(images), labels)
        views = self.patch_scores(images)
        self.measure(self.centre_metrics, views[CENTRAL_PATCH], labels)
        return self.measure(self.test_metrics, average_softmax(views), labels)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Scores (B, classes) of the images of a batch."""
        return self(batch[0])

    def measure(self, metrics: SplitMetrics, scores: Tensor, labels: Tensor) -> Tensor:
        """Add a batch to the metrics of a split; returns the predicted classes (B,)."""
        metrics.add(self.loss(scores, labels), scores, labels)
        return scores.argmax(1)

    def on_validation_epoch_end(self) -> None:
        self.requested = time.perf_counter()  # validation is not waiting for data
        self.log_metrics("val", self.val_metrics)
        self.val_error = self.val_metrics.means["error"].compute().item()

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test", self.test_metrics)
        if self.has_patches:
            self.log_metrics("test_centre", self.centre_metrics)

    # --- Metrics ---------------------------------------------------------------------------------

    def log_metrics(self, split: str, metrics: SplitMetrics) -> None:
        """Log the metrics of a split; Lightning computes them over all ranks and resets them."""
        metrics.count()
        loss = metrics.means["loss"].compute().item()
        if not isfinite(loss):
            raise Diverged(f"the {split} loss became {loss}")
        for name, mean in metrics.means.items():
            self.log(f"{name}/{split}", mean, on_step=False, on_epoch=True, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["train_sums"] = self.train_metrics.sums()
        own = getattr(getattr(self.trainer, "datamodule", None), "preprocessing", None)
        if isinstance(own, Preprocessing):
            checkpoint["preprocessing"] = own.stored()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.resumed_sums = checkpoint.get("train_sums", {})
        self.val_error = checkpoint.get("epoch_metrics", {}).get("error/val")
        data: Any = getattr(self.trainer, "datamodule", None)
        stored = checkpoint.get("preprocessing")
        if not stored or not isinstance(getattr(data, "preprocessing", None), Preprocessing):
            return
        of_run = False  # evaluation may use another data set
        with suppress(KeyError, TypeError):  # a file from elsewhere can contain anything
            of_run = checkpoint["hyper_parameters"]["data"]["dataset"] == data.dataset
        classes, mean = list(stored.get("classes", ())), stored.get("mean")
        if other := other_classes(data.class_names, classes):
            if of_run:
                raise UserError(f"{other}; restore the folders")
            if self.trainer.is_global_zero:
                logging.getLogger(__name__).warning("%s; they are compared in this order", other)
        own = data.preprocessing.mean
        if self.trainer.state.fn == "fit" and own is not None and mean is not None:
            own.copy_(mean)  # also if images were added since

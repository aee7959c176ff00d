"""One training epoch of LeNet-5 with our defaults, compared with a plain loop and with DataLoaders.

All train the same net with the same loss, optimizer and schedule on the same images in batches of
128. Ours also logs, measures and shifts the images. The plain loop runs in our process, and so uses
the memory that our run keeps. The tutorial's loop and the usual Lightning project run in a separate
process, as their users would run them. A third of an epoch is measured and multiplied by three. The
output of all processes is discarded: progress bars would be mixed with the rows.
"""

import os
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning.pytorch as pl
import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms

from classic_cnns import build, compose
from classic_cnns.callbacks.stop import StopOnSignal
from classic_cnns.data.transforms import scale
from classic_cnns.run.run import assemble
from classic_cnns.trainer.devices import keep_freed_memory
from classic_cnns.trainer.spinning import limit_spinning
from tests.bench import Row, row

BATCHES, BATCH = 143, 128  # a third of an epoch of 430
ADDED = ["callbacks=[default,early_stopping,learning_rate_monitor]", "logger=[tensorboard,csv]"]
ADDED += ["callbacks.early_stopping.patience=100"]  # computed, but does not stop the run


class Digits(Dataset):
    """torchvision.datasets.MNIST with the transforms of a tutorial, on the same training images."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(28, padding=1),  # our shift of at most one pixel
                transforms.Pad(2),
                transforms.ToTensor(),
                transforms.Normalize(0.1307, 0.3081),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        image = Image.fromarray(self.images[index].numpy(), mode="L")
        return self.transform(image), int(self.labels[index])


class UsualModule(pl.LightningModule):
    """A module as in most Lightning projects: two torchmetrics and two logs in each step."""

    def __init__(self, net, loss, optimizer, scheduler) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.optimizers_and_schedulers = [optimizer], [{"scheduler": scheduler, "interval": "step"}]
        self.train_loss, self.train_acc = MeanMetric(), MulticlassAccuracy(10)

    def configure_optimizers(self):
        return self.optimizers_and_schedulers

    def training_step(self, batch, batch_idx):
        x, y = batch
        scores = self.net(x)
        loss = self.loss(scores, y)
        self.train_loss(loss)
        self.train_acc(scores.argmax(1), y)
        both = {"on_step": False, "on_epoch": True, "prog_bar": True}
        self.log("train/loss", self.train_loss, **both)
        self.log("train/acc", self.train_acc, **both)
        return loss

    def on_train_epoch_start(self) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        self.seconds = time.perf_counter() - self.started


class PlainLoop:
    """A net with loss, optimizer and schedule, and a plain training loop over batches."""

    def __init__(self, config: DictConfig, device: torch.device) -> None:
        classifier, _ = build(config)
        self.net, self.loss = classifier.net.to(device), classifier.loss
        self.optimizer = classifier.optimizer(self.net.named_parameters())
        self.scheduler = classifier.scheduler(self.optimizer, total_steps=10**6)
        self.device = device

    def epoch(self, batches: Iterable, measured: bool) -> float:
        """Train an epoch, with loss and error if `measured`; returns its seconds."""
        start, loss_sum, errors = time.perf_counter(), 0.0, 0.0
        for x, y in batches:
            x, y = x.to(self.device), y.to(self.device)
            self.optimizer.zero_grad()
            scores = self.net(x)
            loss = self.loss(scores, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
            self.optimizer.step()
            self.scheduler.step()
            if measured:
                loss_sum += loss.item()
                errors += (scores.argmax(1) != y).sum().item()
        return time.perf_counter() - start


class OtherProcess:
    """The alternatives, run in the only process of a pool; `prepare` initializes it."""

    loop: PlainLoop
    digits: Digits
    workers: int

    @classmethod
    def prepare(cls, config: DictConfig, device: torch.device, *digits: np.ndarray) -> None:
        cls.loop = PlainLoop(config, device)
        cls.digits = Digits(*map(torch.from_numpy, digits))
        cls.workers = min((0, 2), key=cls.tutorial)

    @classmethod
    def loader(cls, workers: int) -> DataLoader:
        return DataLoader(cls.digits, BATCH, shuffle=True, num_workers=workers)

    @classmethod
    def tutorial(cls, workers: int | None = None) -> float:
        workers = cls.workers if workers is None else workers
        return cls.loop.epoch(cls.loader(workers), measured=True)

    @classmethod
    def usual(cls) -> float:
        loop = cls.loop
        module = UsualModule(loop.net, loop.loss, loop.optimizer, loop.scheduler)
        with TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about too few workers
            pl.Trainer(
                accelerator="auto",
                devices=1,
                max_epochs=1,
                gradient_clip_val=5.0,
                default_root_dir=folder,
                enable_model_summary=False,
            ).fit(module, cls.loader(cls.workers))
        return module.seconds

    @classmethod
    def chosen_workers(cls) -> int:
        return cls.workers


class CompareEpochs(pl.Callback):
    """Measure the alternatives after each of our epochs; each trains its own net."""

    def __init__(self, config: DictConfig, others: bool) -> None:
        """Without `others` only the plain loop is measured."""
        self.config, self.others = config, others
        self.seconds: list[dict[str, float]] = []  # one for each round
        self.pool, self.workers = None, 0

    def on_train_start(self, trainer, module) -> None:
        data = trainer.datamodule
        index = torch.from_numpy(data.train_indices).to(module.device)
        images, labels = (data.resident[f"train_{name}"][index] for name in ("images", "labels"))
        self.tensors, self.labels = scale(images, -0.1, 1.175), labels
        self.loop = PlainLoop(self.config, module.device)
        if not self.others:
            return
        part = slice(BATCHES * BATCH)
        digits = (images[part, 0, 2:30, 2:30].contiguous(), labels[part])
        arrays = [tensor.cpu().numpy() for tensor in digits]
        arguments = (self.config, module.device, *arrays)
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), OtherProcess.prepare, arguments)
        self.workers = self.pool.submit(OtherProcess.chosen_workers).result()

    def on_train_epoch_end(self, trainer, module) -> None:
        speed = trainer.callback_metrics["speed/images_per_second"].item()
        order = torch.randperm(len(self.labels), device=module.device)[: BATCHES * BATCH]
        in_memory = ((self.tensors[i], self.labels[i]) for i in order.split(BATCH))
        seconds = {
            "ours": BATCHES * BATCH / speed,
            "plain": self.loop.epoch(in_memory, measured=False),
        }
        if self.pool:
            seconds["tutorial"] = self.pool.submit(OtherProcess.tutorial).result()
            seconds["usual"] = self.pool.submit(OtherProcess.usual).result()
        if trainer.current_epoch:  # the first round warms up
            whole = len(self.labels) / (BATCHES * BATCH)
            self.seconds.append({name: value * whole for name, value in seconds.items()})

    def on_train_end(self, trainer, module) -> None:
        if self.pool:
            self.pool.shutdown()


def silence() -> None:
    """Discard the output of this process and of its children."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def measure(rounds: int, words: list[str], others: bool) -> tuple[list[dict[str, float]], int]:
    """Seconds of an epoch of each alternative in each round, and the workers of DataLoaders."""
    keep_freed_memory()
    limit_spinning()
    with TemporaryDirectory() as folder:
        config = compose(
            "model=lenet5", "data=mnist", f"trainer.max_epochs={rounds + 1}",
            f"+trainer.limit_train_batches={BATCHES}", f"run_dir={folder}", *words,
        )  # fmt: skip
        module, data = build(config)
        comparison = CompareEpochs(config, others)
        trainer = assemble(config, Path(folder), module, StopOnSignal(), None)
        trainer.callbacks.append(comparison)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, data)
        for logger in trainer.loggers:
            logger.finalize("success")
    return comparison.seconds, comparison.workers


def measure_silently(*arguments) -> tuple[list[dict[str, float]], int]:
    """Call `measure` in a process whose output is discarded."""
    with ProcessPoolExecutor(1, get_context("spawn"), silence) as pool:
        return pool.submit(measure, *arguments).result()


def epochs(rounds: int) -> Iterable[Row]:
    def compared(other: str, goal: str, name: str) -> Row:
        times = [(each["ours"], each[other]) for each in seconds]
        return row(what, times, goal, ("ours", name))

    what = "LeNet-5 epoch"
    seconds, _ = measure_silently(rounds, [], False)
    yield compared("plain", "<= 1.10", "plain loop over tensors")
    seconds, workers = measure_silently(min(rounds, 2), [], True)  # rounds of 10 s
    loader = f"PIL and DataLoader, {workers} workers"
    yield compared("usual", ">= 2.5", f"Lightning, torchmetrics, {loader}")
    yield compared("tutorial", ">= 2.5", f"plain loop, {loader}")
    what = "LeNet-5 epoch with EarlyStopping, LearningRateMonitor and CSVLogger"
    seconds, _ = measure_silently(rounds, ADDED, False)
    yield compared("plain", "<= 1.15", "plain loop over tensors")

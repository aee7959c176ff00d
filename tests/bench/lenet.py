"""One training epoch of LeNet-5: all that is on by default, beside a plain loop and DataLoaders.

Every way trains the same net with the same loss, optimizer and schedule on the same images in
batches of 128. Ours also logs, measures and shifts the images. The plain loop shares our process,
and so the memory that ours keeps; the ways of the tutorials and of Lightning have a process of
their own, as they have in life. What is measured is a third of an epoch, and told three times as
long. No process has an output: the bars of others would stand between our rows.
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
from classic_cnns.trainer.memory import keep_freed_memory
from tests.bench import Row, row

BATCHES, BATCH = 143, 128  # a third of an epoch of 430
ADDED = ["callbacks=[default,early_stopping,learning_rate_monitor]", "logger=[tensorboard,csv]"]
ADDED += ["callbacks.early_stopping.patience=100"]  # it is to watch, and not to stop


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


class Usual(pl.LightningModule):
    """Written as Lightning projects usually are: two torchmetrics and two logs at each step."""

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


class Learner:
    """A net with all that it learns with, and a plain loop over batches."""

    def __init__(self, config: DictConfig, device: torch.device) -> None:
        classifier, _ = build(config)
        self.net, self.loss = classifier.net.to(device), classifier.loss
        self.optimizer = classifier.optimizer(self.net.named_parameters())
        self.scheduler = classifier.scheduler(self.optimizer, total_steps=10**6)
        self.device = device

    def epoch(self, batches: Iterable, measured: bool) -> float:
        """Its seconds: of the bare minimum or, as in tutorials, `measured`."""
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


class Elsewhere:
    """The ways of others, in the one process of a pool, which starts with `prepare`."""

    learner: Learner
    digits: Digits
    workers: int

    @classmethod
    def prepare(cls, config: DictConfig, device: torch.device, *digits: np.ndarray) -> None:
        cls.learner = Learner(config, device)
        cls.digits = Digits(*map(torch.from_numpy, digits))
        cls.workers = min((0, 2), key=cls.tutorial)

    @classmethod
    def loader(cls, workers: int) -> DataLoader:
        return DataLoader(cls.digits, BATCH, shuffle=True, num_workers=workers)

    @classmethod
    def tutorial(cls, workers: int | None = None) -> float:
        workers = cls.workers if workers is None else workers
        return cls.learner.epoch(cls.loader(workers), measured=True)

    @classmethod
    def usual(cls) -> float:
        own = cls.learner
        module = Usual(own.net, own.loss, own.optimizer, own.scheduler)
        with TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of too few workers
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
    def chosen(cls) -> int:
        return cls.workers


class InTurn(pl.Callback):
    """After each of our thirds of an epoch, one of each other way on a net of its own."""

    def __init__(self, config: DictConfig, others: bool) -> None:
        """Without `others` beside the plain loop alone."""
        self.config, self.others = config, others
        self.seconds: list[dict[str, float]] = []  # of each round
        self.pool, self.workers = None, 0

    def on_train_start(self, trainer, module) -> None:
        data = trainer.datamodule
        index = torch.from_numpy(data.train_indices).to(module.device)
        images, labels = (data.resident[f"train_{name}"][index] for name in ("images", "labels"))
        self.tensors, self.labels = scale(images, -0.1, 1.175), labels
        self.learner = Learner(self.config, module.device)
        if not self.others:
            return
        part = slice(BATCHES * BATCH)
        digits = (images[part, 0, 2:30, 2:30].contiguous(), labels[part])
        arrays = [tensor.cpu().numpy() for tensor in digits]
        arguments = (self.config, module.device, *arrays)
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), Elsewhere.prepare, arguments)
        self.workers = self.pool.submit(Elsewhere.chosen).result()

    def on_train_epoch_end(self, trainer, module) -> None:
        speed = trainer.callback_metrics["speed/images_per_second"].item()
        order = torch.randperm(len(self.labels), device=module.device)[: BATCHES * BATCH]
        in_memory = ((self.tensors[i], self.labels[i]) for i in order.split(BATCH))
        seconds = {
            "ours": BATCHES * BATCH / speed,
            "plain": self.learner.epoch(in_memory, measured=False),
        }
        if self.pool:
            seconds["tutorial"] = self.pool.submit(Elsewhere.tutorial).result()
            seconds["usual"] = self.pool.submit(Elsewhere.usual).result()
        if trainer.current_epoch:  # the first round warms up
            whole = len(self.labels) / (BATCHES * BATCH)
            self.seconds.append({name: value * whole for name, value in seconds.items()})

    def on_train_end(self, trainer, module) -> None:
        if self.pool:
            self.pool.shutdown()


def silence() -> None:
    """No output of this process and of what it starts."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def measure(rounds: int, words: list[str], others: bool) -> tuple[list[dict[str, float]], int]:
    """Seconds of an epoch of each way in each round, and the workers that DataLoaders have."""
    keep_freed_memory()
    with TemporaryDirectory() as folder:
        config = compose(
            "model=lenet5", "data=mnist", f"trainer.max_epochs={rounds + 1}",
            f"+trainer.limit_train_batches={BATCHES}", f"run_dir={folder}", *words,
        )  # fmt: skip
        module, data = build(config)
        in_turn = InTurn(config, others)
        trainer = assemble(config, Path(folder), module, StopOnSignal(saves=True), None)
        trainer.callbacks.append(in_turn)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, data)
        for logger in trainer.loggers:
            logger.finalize("success")
    return in_turn.seconds, in_turn.workers


def elsewhere(*arguments) -> tuple[list[dict[str, float]], int]:
    """The same in a silent process."""
    with ProcessPoolExecutor(1, get_context("spawn"), silence) as pool:
        return pool.submit(measure, *arguments).result()


def epochs(rounds: int) -> Iterable[Row]:
    def beside(other: str, goal: str, name: str) -> Row:
        times = [(each["ours"], each[other]) for each in seconds]
        return row(what, times, goal, ("ours", name))

    what = "LeNet-5 epoch"
    seconds, workers = elsewhere(rounds, [], True)
    loader = f"PIL and DataLoader, {workers} workers"
    yield beside("plain", "<= 1.10", "plain loop over tensors")
    yield beside("usual", ">= 2.5", f"Lightning, torchmetrics, {loader}")
    yield beside("tutorial", ">= 2.5", f"plain loop, {loader}")
    what = "LeNet-5 epoch with EarlyStopping, LearningRateMonitor and CSVLogger"
    seconds, _ = elsewhere(rounds, ADDED, False)
    yield beside("plain", "<= 1.15", "plain loop over tensors")

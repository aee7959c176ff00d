"""One training epoch of LeNet-5: all that is on by default, beside a plain loop and DataLoaders.

Every way trains the same net with the same loss, optimizer and schedule on the same 55,000 images
in batches of 128. Ours also logs, measures, shows its bar and shifts the images.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import hydra
import lightning.pytorch as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from classic_cnns.command_line import CONF
from classic_cnns.data.transforms import scale
from classic_cnns.report.tensorboard import RunLogger
from classic_cnns.run import build, make_trainer
from classic_cnns.trainer.checkpoint import BestAndLast
from classic_cnns.trainer.stop import Stop
from tests.bench import Row, row


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


class InTurn(pl.Callback):
    """After each of our epochs, an epoch of each other way on a net of its own."""

    def __init__(self, config, rounds: int) -> None:
        self.config, self.rounds = config, rounds
        self.times: dict[str, list[tuple[float, float]]] = {}

    def on_train_start(self, trainer, module) -> None:
        other, _ = build(self.config)
        self.net, self.loss = other.net, other.loss
        self.optimizer = other.optimizer(self.net.named_parameters())
        self.scheduler = other.scheduler(self.optimizer, total_steps=10**6)

    def on_train_epoch_end(self, trainer, module) -> None:
        data = trainer.datamodule
        index = torch.from_numpy(data.train_indices)
        images, labels = (data.resident[f"train_{name}"][index] for name in ("images", "labels"))
        ours = len(index) / module.results["speed/images_per_second"]
        tensors = scale(images, -0.1, 1.175)

        def in_memory() -> Iterable:
            for part in torch.randperm(len(tensors)).split(128):
                yield tensors[part], labels[part]

        digits = Digits(images[:, 0, 2:30, 2:30].contiguous(), labels)
        ways = {"plain loop": in_memory()} | {
            f"DataLoader, {n} workers": DataLoader(digits, 128, shuffle=True, num_workers=n)
            for n in (0, 2)
        }
        for name, batches in ways.items():
            start, sums = time.perf_counter(), {"loss": 0.0, "errors": 0.0}
            for x, y in batches:
                self.optimizer.zero_grad()
                scores = self.net(x)
                loss = self.loss(scores, y)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
                self.optimizer.step()
                self.scheduler.step()
                if name != "plain loop":  # which is the bare minimum; tutorials measure too
                    sums["loss"] += loss.item()
                    sums["errors"] += (scores.argmax(1) != y).sum().item()
            if trainer.current_epoch:  # the first round warms up
                seconds = time.perf_counter() - start
                self.times.setdefault(name, []).append((ours, seconds))


def epochs(rounds: int) -> list[Row]:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["name=bench", "trainer=cpu", f"trainer.max_epochs={rounds + 1}"]
        config = hydra.compose("train", words)
    classifier, data = build(config)
    in_turn = InTurn(config, rounds)
    with TemporaryDirectory() as folder:
        logger = RunLogger(Path(folder), first_step=0)
        trainer = make_trainer(config, Stop())
        trainer.logger = logger
        trainer.callbacks += [BestAndLast(Path(folder)), in_turn]
        trainer.fit(classifier, data)
        logger.close()
    times = in_turn.times
    plain = times.pop("plain loop")
    loaders = [
        (ours[0], min(seconds for _, seconds in others))
        for ours, *others in zip(plain, *times.values(), strict=True)
    ]
    return [
        row("LeNet-5 epoch, CPU", plain, "<= 1.10", ("ours", "plain loop over tensors")),
        row(
            "LeNet-5 epoch, CPU",
            loaders,
            ">= 2.5",
            ("ours", "PIL and DataLoader, best of 0 and 2 workers"),
        ),
    ]

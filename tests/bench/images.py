"""Augmented batches of CIFAR-10 (crop, flip, colour noise) compared with per-sample transforms."""

import time

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from classic_cnns.data.batches import Batches
from classic_cnns.data.transforms import ColourNoise, RandomCrop, RandomFlip, scale
from classic_cnns.trainer.devices import core_count, keep_freed_memory
from tests.bench import Row, compare


class TutorialImages(Dataset):
    """torchvision.datasets.CIFAR10 with the transforms of an AlexNet tutorial."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, axes: torch.Tensor) -> None:
        self.images = images.permute(0, 2, 3, 1).numpy()
        self.labels, self.axes = labels.tolist(), axes
        self.transform = v2.Compose(
            [
                v2.RandomCrop(24),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        image = self.transform(Image.fromarray(self.images[index]))
        colour = self.axes @ (0.1 * torch.randn(3))
        return image + colour[:, None, None], self.labels[index]


def images(rounds: int) -> list[Row]:
    keep_freed_memory()
    random = np.random.RandomState(0)
    pixels = torch.from_numpy(random.randint(256, size=(10_000, 3, 32, 32), dtype=np.uint8))
    labels = torch.from_numpy(random.randint(10, size=10_000))
    augment = [RandomCrop(24), RandomFlip(), ColourNoise(0.1)]
    augment[-1].partial_fit(pixels)
    ours = Batches(
        pixels,
        labels,
        torch.arange(10_000),
        128,
        to_input=lambda x: scale(x, 0, 255),
        augment=augment,
        shuffle=True,
    )
    tutorial_images = TutorialImages(pixels, labels, augment[-1].axes)

    def seconds(batches) -> float:
        start = time.perf_counter()
        for _ in batches:
            pass
        return time.perf_counter() - start

    def loader(workers: int) -> DataLoader:
        return DataLoader(tutorial_images, 128, shuffle=True, num_workers=workers)

    workers = min({0, 1, 2, core_count()}, key=lambda n: seconds(loader(n)))
    names = ("ours", f"torchvision, PIL and DataLoader, {workers} workers")
    what = "10,000 images cropped, flipped, coloured"
    return [
        compare(
            what, lambda: seconds(ours), lambda: seconds(loader(workers)), ">= 20", names, rounds
        )
    ]

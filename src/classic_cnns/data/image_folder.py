"""Data sets too large for memory: files in class folders, decoded by worker processes."""

import logging
import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from classic_cnns import UserError
from classic_cnns.data import folders
from classic_cnns.data.batches import Batches
from classic_cnns.data.module import ImageData
from classic_cnns.data.pictures import middle
from classic_cnns.trainer.devices import core_count

log = logging.getLogger(__name__)


def decode(path: str, size: int) -> np.ndarray:
    """The middle of an image whose shorter side is brought to `size`: (size, size, 3) uint8 RGB.

    Whatever has no three colours gets them, and transparency is left out.
    """
    with Image.open(path) as file:
        file.draft(None, (size, size))  # JPEGs of twice the size or more are decoded to a half
        image = file.convert("RGB")
    return np.asarray(middle(image, size))


class Files(Dataset):
    """Of a list of numbers: the images (n, 3, size, size) uint8, and where in the list they are.

    Files that cannot be decoded are missing in both, and named in the third place.
    """

    def __init__(self, paths: list[str], size: int) -> None:
        self.paths, self.size = paths, size

    def __getitem__(self, numbers: list[int]) -> tuple[Tensor, Tensor, list[str]]:
        images = np.empty((len(numbers), self.size, self.size, 3), np.uint8)
        there: list[int] = []
        missing: list[str] = []
        for row, number in enumerate(numbers):
            try:
                images[len(there)] = decode(self.paths[number], self.size)
                there.append(row)
            except Exception:  # a damaged file raises anything; it is named after the pass
                missing.append(self.paths[number])
        pixels = torch.from_numpy(images[: len(there)]).permute(0, 3, 1, 2).contiguous()
        return pixels, torch.tensor(there, dtype=torch.int64), missing


class DecodedBatches(Batches):
    """Batches of files, each one decoded as a whole by one of `workers` processes."""

    at_once = 1

    def __init__(self, files: Files, *args: Any, workers: int, **options: Any) -> None:
        super().__init__(files, *args, **options)
        self.workers = workers

    def read(self, shares: Sequence[Tensor]) -> Iterator[tuple[Tensor, Any]]:
        device = self.indices.device
        numbers = [share.tolist() for share in shares]
        loader: DataLoader = DataLoader(
            self.images,
            batch_size=None,
            sampler=numbers,
            num_workers=min(self.workers, len(numbers)),
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one
        )
        parts, missing = iter(loader), []
        for left in range(len(numbers) - 1, -1, -1):
            images, there, names = next(parts)
            missing += names
            if not left:  # now, since nobody need ask for what follows the last batch
                next(parts, None)  # ends the workers
                self.tell(missing, sum(map(len, numbers)))
            yield images.to(device, non_blocking=True), there.to(device)

    def tell(self, names: list[str], count: int) -> None:
        """Name those of `count` files that a pass could not decode, in one line."""
        if not names:
            return
        text = f"{len(names)} of {count} files cannot be decoded"
        if len(names) == count >= min(50, len(self.indices)):  # a rank's share may be one file
            raise UserError(f"data.root: {text}, like {names[0]}; replace them")
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        log.warning("%s and were left out: %s%s", text, ", ".join(names[:20]), more)


class ImageFolderData(ImageData):
    """Training, validation and test batches of class folders, in the layout of `folders`."""

    def __init__(self, root: str, workers: int | None, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.workers = root, workers
        self.files: dict[str, tuple[list[str], list[int]]] = {}

    def prepare_data(self) -> None:
        if self.files:
            return
        self.class_names = folders.classes(self.root)
        if len(self.class_names) != self.num_classes:  # as in a run that goes on
            raise UserError(
                f"data.root={self.root}: has {len(self.class_names)} classes and this run was "
                f"started with {self.num_classes}; put the folders back, or start a new run"
            )
        self.files = {split: folders.files(self.root, split) for split in ("train", "val", "test")}

    def setup(self, stage: str) -> None:
        self.prepare_data()  # done already, but for those who use this class alone
        self.preprocessing.to(self.device)  # with the mean image of an earlier run
        if not self.fitted:
            # Deviation: mean image and colour axes of 1,000 training images, not of all
            count = len(self.files["train"][0])
            some = np.sort(np.random.RandomState(1998).permutation(count)[:1000])
            parts = self.loader("train", 1).read(torch.from_numpy(some).split(50))
            self.fit(torch.cat([images for images, _ in parts]))

    def facts(self) -> dict[str, object]:
        """What the run's record says of the data: how many files, and a checksum of their names."""
        base = Path(self.root).expanduser()
        names = [
            path.removeprefix(f"{base}{os.sep}")  # not by way of a million Paths
            for paths, _ in self.files.values()
            for path in paths
        ]
        return {
            "dataset": self.dataset,
            "root": str(base.absolute()),
            "files": {split: len(paths) for split, (paths, _) in self.files.items()},
            "names_sha256": sha256("\n".join(names).encode()).hexdigest(),
        }

    def batches(self, split: str, batch_size: int, **options: Any) -> Batches:
        paths, labels = self.files[split]
        every = core_count() // (self.trainer.num_devices if self.trainer else 1)
        return DecodedBatches(
            Files(paths, self.size),
            torch.tensor(labels, device=self.device),
            torch.arange(len(paths), device=self.device),
            batch_size,
            workers=max(1, every) if self.workers is None else self.workers,
            **options,
        )

"""Data sets that fit in memory: one uint8 tensor on the run's device."""

import logging
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classic_cnns.data import fetch
from classic_cnns.data.batches import Batches
from classic_cnns.data.module import ImageData
from classic_cnns.data.transforms import pad_to

log = logging.getLogger(__name__)


def split_indices(
    labels: np.ndarray, train_size: int, val_size: int, stratify: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices (int64) of training and validation images; the same for every seed.

    Validation images are the first `val_size` of a fixed permutation of all images. `train_size`
    images, including these, are used: of the others, each class gets its share. Without `stratify`
    they are the first `train_size` images of the data set.
    """
    # numpy guarantees that the stream of RandomState never changes.
    order = np.random.RandomState(1998).permutation(len(labels) if stratify else train_size)
    val, train = order[:val_size], order[val_size:]
    place = np.empty(len(train))  # position of each image within its class, 0 to 1
    for label in np.unique(labels):
        mine = labels[train] == label
        place[mine] = np.linspace(0, 1, mine.sum(), endpoint=False)
    train = train[np.argsort(place, kind="stable")[: train_size - val_size]]
    return np.sort(train), np.sort(val)


class ResidentData(ImageData):
    """Training, validation and test batches of a data set named in conf/data/.

    Validation images are taken from the training set; the official test set stays complete. Images
    smaller than the net's input are padded before augmentation, so that they can be shifted within
    it.
    """

    def __init__(
        self,
        train_size: int,
        sha256: dict[str, str],
        val_size: int | None,
        data_dir: str | None,
        class_names: Sequence[str] | None = None,  # absent in configs of earlier versions
        stratify: bool = False,  # likewise
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.preprocessing.classes = list(class_names or self.class_names)
        self.sums, self.data_dir = dict(sha256), data_dir
        held_out = min(train_size // 10, 5000) if val_size is None else val_size
        self.split = train_size, max(1, held_out), stratify
        self.sets: Sequence[str] = ("train", "test")  # which of the two sets are read
        self.arrays: fetch.Arrays = {}
        self.resident: dict[str, Tensor] = {}

    def prepare_data(self) -> None:
        if not self.arrays:
            sums = {name: x for name, x in self.sums.items() if name.startswith(tuple(self.sets))}
            self.arrays = fetch.load(self.dataset, sums, self.data_dir)
            if "train" in self.sets:
                labels = self.arrays["train_labels"].flatten()
                self.train_indices, self.val_indices = split_indices(labels, *self.split)

    def setup(self, stage: str) -> None:
        if self.resident:
            return
        self.prepare_data()  # Lightning calls it in only one process of a machine
        for split in self.sets:
            images = torch.from_numpy(self.arrays[f"{split}_images"])
            # Checksums cover the bytes, the config has the shape.
            images = images.reshape(-1, self.channels, self.size, self.size).to(self.device)
            if self.input["fit"] == "pad":
                images = pad_to(images, self.input["size"])
            self.resident[f"{split}_images"] = images
            labels = torch.from_numpy(self.arrays[f"{split}_labels"]).flatten()
            self.resident[f"{split}_labels"] = labels.long().to(self.device)
        if "train" in self.sets:
            log.info(
                "%s: %s images to train on, %s held out for validation",
                self.dataset, f"{len(self.train_indices):,}", f"{len(self.val_indices):,}",
            )  # fmt: skip
        self.preprocessing.to(self.device)  # including the mean image of a checkpoint
        if not self.has_statistics:
            training = torch.from_numpy(self.train_indices).to(self.device)  # no validation images
            images = self.resident["train_images"]
            size = max(1, 2**20 // images[0].numel())
            self.compute_statistics(images.index_select(0, part) for part in training.split(size))

    def facts(self) -> dict[str, object]:
        """For provenance.json: the checksums and the split."""
        held_out = self.val_indices.astype(np.int64).tobytes()
        return {
            "dataset": self.dataset,
            "sha256": self.sums,
            "val_size": len(self.val_indices),
            "val_indices_sha256": sha256(held_out).hexdigest(),
        }

    def batches(self, split: str, batch_size: int, **options: Any) -> Batches:
        file = "test" if split == "test" else "train"
        images, labels = self.resident[f"{file}_images"], self.resident[f"{file}_labels"]
        if split == "test":
            indices = torch.arange(len(labels))
        else:
            indices = torch.from_numpy(self.train_indices if split == "train" else self.val_indices)
        return Batches(images, labels, indices.to(images.device), batch_size, **options)

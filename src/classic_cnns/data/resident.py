"""Data sets that fit into memory: the whole set as one uint8 tensor on the run's device."""

from hashlib import sha256

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from classic_cnns.data import fetch
from classic_cnns.data.batches import Batches
from classic_cnns.data.transforms import crop_to, pad_to, resize_to, scale

FITS = {"crop": crop_to, "resize": resize_to}  # of distorted images; pad comes before


def split_indices(train_size: int, val_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation indices (int64, sorted), the same for everybody and every seed.

    numpy guarantees that the stream of RandomState never changes.
    """
    order = np.random.RandomState(1998).permutation(train_size)
    return np.sort(order[val_size:]), np.sort(order[:val_size])


class ResidentData(pl.LightningDataModule):
    """Training, validation and test batches of a data set named in conf/data/.

    Validation images come out of the training set only; the official test set stays whole. Batches
    are (images float32 (B, C, H, W) as the model's `input` asks, labels int64 (B,)). Smaller images
    are padded before they are distorted, so that they can move; others are brought to their size
    afterwards, which leaves the ones alone that a distortion has cropped.
    """

    def __init__(
        self,
        dataset: str,
        channels: int,
        size: int,
        num_classes: int,
        train_size: int,
        test_size: int,
        sha256: dict[str, str],
        val_size: int,
        batch_size: int,
        eval_batch_size: int,
        augment: str,
        augmentations: dict[str, list],
        input: dict,
        data_dir: str | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.dataset, self.sums, self.data_dir = dataset, dict(sha256), data_dir
        self.channels, self.input = channels, dict(input)
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.augment = augmentations[augment]
        self.train_indices, self.val_indices = split_indices(train_size, val_size)
        self.resident: dict[str, Tensor] = {}
        self.mean: Tensor | None = None

    def prepare_data(self) -> None:
        fetch.load(self.dataset, self.sums, self.data_dir)

    def setup(self, stage: str) -> None:
        if self.resident:
            return
        arrays = fetch.load(self.dataset, self.sums, self.data_dir)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        for split in ("train", "test"):
            images = torch.from_numpy(arrays[f"{split}_images"])
            images = images.view(len(images), self.channels, *images.shape[-2:]).to(device)
            if self.input["fit"] == "pad":
                images = pad_to(images, self.input["size"])
            self.resident[f"{split}_images"] = images
            labels = torch.from_numpy(arrays[f"{split}_labels"])
            self.resident[f"{split}_labels"] = labels.long().to(device)
        self.learn()

    def learn(self) -> None:
        """Hand the training images, without the held-out ones, to what has to know of them."""
        images = self.resident["train_images"]
        images = images.index_select(0, torch.from_numpy(self.train_indices).to(images.device))
        for distortion in self.augment:
            distortion.learn(images)
        if self.input["subtract_mean"]:
            mean = images.sum(0, dtype=torch.int32) / len(images)  # 64 bits take ten times as long
            self.mean = self.prepare(mean[None])[0]  # before there is a mean to subtract

    def facts(self) -> dict[str, object]:
        """What the run's record says of the data: the checksums and the split."""
        held_out = self.val_indices.astype(np.int64).tobytes()
        return {
            "dataset": self.dataset,
            "sha256": self.sums,
            "val_size": len(self.val_indices),
            "val_indices_sha256": sha256(held_out).hexdigest(),
        }

    def prepare(self, images: Tensor) -> Tensor:
        if self.input["fit"] in FITS:
            images = FITS[self.input["fit"]](images, self.input["size"])
        images = scale(images, self.input["low"], self.input["high"])
        return images if self.mean is None else images.sub_(self.mean)

    def batches(self, split: str, indices: np.ndarray, batch_size: int, **training) -> Batches:
        images, labels = self.resident[f"{split}_images"], self.resident[f"{split}_labels"]
        ranks = self.trainer and self.trainer.distributed_sampler_kwargs
        if ranks:  # those that share the data, as Lightning's strategy has it
            training |= {"rank": ranks["rank"], "world_size": ranks["num_replicas"]}
        index = torch.from_numpy(indices).to(images.device)
        return Batches(images, labels, index, batch_size, prepare=self.prepare, **training)

    def train_dataloader(self) -> Batches:
        return self.batches(
            "train",
            self.train_indices,
            self.batch_size,
            augment=self.augment,
            shuffle=True,
            seed=self.seed,
            epoch=lambda: self.trainer.current_epoch if self.trainer else 0,
        )

    def val_dataloader(self) -> Batches:
        return self.batches("train", self.val_indices, self.eval_batch_size)

    def test_dataloader(self) -> Batches:
        everything = np.arange(len(self.resident["test_labels"]))
        return self.batches("test", everything, self.eval_batch_size)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch  # already there

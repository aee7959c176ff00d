"""What all data sets share on the way from uint8 images to the batches of a run."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from classic_cnns.data.batches import Batches
from classic_cnns.data.transforms import crop_to, pad_to, patches_of, resize_to, scale

FITS = {"pad": pad_to, "crop": crop_to, "resize": resize_to}


class ImageData(pl.LightningDataModule):
    """Batches of (images float32 (B, C, H, W) as the model's `input` asks, labels int64 (B,)).

    Only training images are distorted, before they get their size, which leaves the ones alone that
    a distortion has cropped. With `test_patches` "nine" or "ten" the images of the test come as
    that many patches each, float32 (B, V, C, H, W).
    """

    class_names: Sequence[str]

    def __init__(
        self,
        dataset: str,
        channels: int,
        size: int,
        num_classes: int,
        batch_size: int,
        eval_batch_size: int,
        augment: str,
        augmentations: dict[str, list],
        input: dict,
        test_patches: str,
        seed: int,
    ) -> None:
        super().__init__()
        self.dataset, self.channels, self.size = dataset, channels, size
        self.num_classes, self.input, self.seed = num_classes, dict(input), seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.augment, self.test_patches = augmentations[augment], test_patches
        self.mean: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def learn(self, images: Tensor) -> None:
        """Hand training images (N, C, H, W) uint8 to what has to know of them."""
        for distortion in self.augment:
            distortion.learn(images)
        if self.input["subtract_mean"]:
            mean = images.sum(0, dtype=torch.int32) / len(images)  # 64 bits take ten times as long
            self.mean = self.prepare(mean[None])[0]  # before there is a mean to subtract

    def prepare(self, images: Tensor) -> Tensor:
        size, fit = self.input["size"], FITS[self.input["fit"]]
        if images.shape[2:] == (size, size):
            images = self.scaled(images)
        elif fit is resize_to:  # linear, so the values are scaled while there are few pixels
            images = resize_to(self.scaled(images), size)
        else:
            images = self.scaled(fit(images, size))
        return images if self.mean is None else images.sub_(self.mean)

    def scaled(self, images: Tensor) -> Tensor:
        return scale(images, self.input["low"], self.input["high"])

    def batches(self, split: str, batch_size: int, **options: Any) -> Batches:
        """The images of "train", "val" or "test"; `options` are those of `Batches`."""
        raise NotImplementedError

    def shared(self, split: str, batch_size: int, **options: Any) -> Batches:
        ranks = self.trainer and self.trainer.distributed_sampler_kwargs
        if ranks:  # those that share the data, as Lightning's strategy has it
            options |= {"rank": ranks["rank"], "world_size": ranks["num_replicas"]}
        return self.batches(split, batch_size, **{"prepare": self.prepare} | options)

    def train_dataloader(self) -> Batches:
        return self.shared(
            "train",
            self.batch_size,
            augment=self.augment,
            shuffle=True,
            seed=self.seed,
            epoch=lambda: self.trainer.current_epoch if self.trainer else 0,
        )

    def val_dataloader(self) -> Batches:
        return self.shared("val", self.eval_batch_size)

    def test_dataloader(self) -> Batches:
        if self.test_patches == "centre":
            return self.shared("test", self.eval_batch_size)

        def prepare(images: Tensor) -> Tensor:
            patches = patches_of(images, self.input["size"], self.test_patches)
            return self.prepare(patches.flatten(0, 1)).view_as(patches)

        return self.shared("test", self.eval_batch_size, prepare=prepare)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch  # already there

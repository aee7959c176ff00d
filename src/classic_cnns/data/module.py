"""Base class of the data modules: from uint8 images to batches."""

from collections.abc import Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from classic_cnns.data.batches import Batches
from classic_cnns.data.preprocessing import Preprocessing


class ImageData(pl.LightningDataModule):
    """Batches of (images float32 (B, C, H, W) as the model's `input` says, labels int64 (B,)).

    Only training images are augmented, before they are resized (an image that an augmentation has
    cropped to the net's size is not changed again). With `test_patches` "nine" or "ten", test
    images are returned as that many patches each, float32 (B, V, C, H, W).
    """

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
        self.augment = augmentations[augment]
        for part in self.augment:
            if not hasattr(part, "draws"):
                raise TypeError(
                    f"data.augmentations.{augment}: {type(part).__name__} has no `draws`, as the "
                    "augmentations in data/transforms.py have; write one like them"
                )
        self.preprocessing = Preprocessing(
            **{key: input[key] for key in ("low", "high", "size", "fit")},
            channels=channels,
            image_size=size,
            classes=[str(number) for number in range(num_classes)],
            test_patches=test_patches,
        )
        self.has_statistics = False  # computed, or from a checkpoint
        self.train_batches: Batches | None = None
        self.resumed: dict[str, Any] = {}  # the state of a pass to be resumed
        self.passes = 0  # over the training images, without a Trainer

    @property
    def device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def compute_statistics(self, parts: Iterable[Tensor]) -> None:
        """Compute the mean image and colour axes of training images, parts of (N, C, H, W) uint8.

        Only one part at a time is in memory, and none is read if no part of the config needs them.
        """
        updates = [a.partial_fit for a in self.augment if hasattr(a, "partial_fit")]
        count, total = 0, torch.zeros((), dtype=torch.int32, device=self.device)
        for part in parts if updates or self.input["subtract_mean"] else ():
            for update in updates:
                update(part)
            if self.input["subtract_mean"]:
                # int64 takes ten times as long
                count, total = count + len(part), total + part.sum(0, dtype=torch.int32)
        if self.input["subtract_mean"]:
            self.preprocessing.mean = None  # otherwise it would be subtracted from itself
            self.preprocessing.mean = self.preprocessing.to_input((total / count)[None])[0]
        self.has_statistics = True

    @property
    def class_names(self) -> Sequence[str]:
        return self.preprocessing.classes

    def batches(self, split: str, batch_size: int, **options: Any) -> Batches:
        """Batches of the split "train", "val" or "test"; `options` are those of `Batches`."""
        raise NotImplementedError

    def loader(self, split: str, batch_size: int, **options: Any) -> Batches:
        ranks = self.trainer and self.trainer.distributed_sampler_kwargs
        if ranks:  # several ranks share the data
            options |= {"rank": ranks["rank"], "world_size": ranks["num_replicas"]}
        own = {"to_input": self.preprocessing.to_input} | options
        return self.batches(split, batch_size, **own)

    def train_dataloader(self) -> Batches:
        trainer: Any = self.trainer
        overfit = trainer is not None and trainer.overfit_batches > 0
        self.train_batches = self.loader(
            "train",
            self.batch_size,
            augment=[] if overfit else self.augment,  # overfitting repeats the same batches
            shuffle=not overfit,
            seed=self.seed,
            epoch=self.epoch,
            ended=lambda: trainer is not None and trainer.is_last_batch,  # of limit_train_batches
            resumed=self.resumed,  # one object: only the first pass skips batches
        )
        return self.train_batches

    def epoch(self) -> int:
        """The current epoch; without a Trainer each pass over the training images is one."""
        if self.trainer:
            return self.trainer.current_epoch
        self.passes += 1
        return self.passes - 1

    # Lightning itself would give a loader its state, but not where a schedule has asked for the
    # number of steps: for that it makes the loader before it reads the checkpoint.
    def state_dict(self) -> dict[str, Any]:
        return self.train_batches.state_dict() if self.train_batches else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resumed.update(state)

    def val_dataloader(self) -> Batches:
        return self.loader("val", self.eval_batch_size, whole=True)

    def test_dataloader(self) -> Batches:
        preprocessing = self.preprocessing  # with patches
        return self.loader("test", self.eval_batch_size, whole=True, to_input=preprocessing)

    def predict_dataloader(self) -> Batches:
        return self.test_dataloader()

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch  # already on the device

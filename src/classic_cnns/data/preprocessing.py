"""What an image goes through before a net sees it; a part of every checkpoint."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from classic_cnns.data.pictures import read_picture
from classic_cnns.data.transforms import crop_to, pad_to, patches_of, resize_to, scale

FITS = {"pad": pad_to, "crop": crop_to, "resize": resize_to}


class Preprocessing(nn.Module):
    """Images (N, C, H, W) uint8 to what the net takes, float32: (N, C, size, size).

    Pixels of 0 become `low`, those of 255 `high`; `fit` is pad, crop or resize, and `mean`
    (C, size, size) is subtracted at last. With `test_patches` "nine" or "ten" an image becomes as
    many patches: (N, V, C, size, size). `image_size` is that of the data set's images, in pixels a
    side, and `classes` names what the net's scores are of.
    """

    mean: Tensor | None

    def __init__(
        self,
        *,
        low: float,
        high: float,
        size: int,
        fit: str,
        channels: int,
        image_size: int,
        classes: Sequence[str],
        test_patches: str = "centre",
        mean: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.low, self.high, self.size, self.fit = low, high, size, fit
        self.channels, self.image_size, self.test_patches = channels, image_size, test_patches
        self.classes = list(classes)
        self.register_buffer("mean", mean, persistent=False)  # the nets' weights stay alone

    def stored(self) -> dict[str, Any]:
        """The arguments that make another one like it: plain values and a tensor."""
        names = ("low", "high", "size", "fit", "channels", "image_size", "classes", "test_patches")
        mean = None if self.mean is None else self.mean.cpu()
        return {name: getattr(self, name) for name in names} | {"mean": mean}

    def to_input(self, images: Tensor) -> Tensor:
        """As in training; a test may look at several patches."""
        size, fit = self.size, FITS[self.fit]
        if images.shape[2:] == (size, size):
            images = self.scaled(images)
        elif fit is resize_to:  # linear, so the values are scaled while there are few pixels
            images = resize_to(self.scaled(images), size)
        else:
            images = self.scaled(fit(images, size))
        return images if self.mean is None else images.sub_(self.mean)

    def read(self, picture: Any) -> tuple[np.ndarray, dict[str, bool]]:
        """A picture of any kind in the form of the data's images, see `read_picture`."""
        digits = self.classes == [str(number) for number in range(10)]
        return read_picture(picture, self.channels, self.image_size, digits)

    def scaled(self, images: Tensor) -> Tensor:
        return scale(images, self.low, self.high)

    def forward(self, images: Tensor) -> Tensor:
        if self.test_patches == "centre":
            return self.to_input(images)
        patches = patches_of(images, self.size, self.test_patches)
        return self.to_input(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])

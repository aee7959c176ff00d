"""The preprocessing of images, which is stored in every checkpoint."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classic_cnns.data.pictures import Form, read_picture
from classic_cnns.data.transforms import crop_to, pad_to, patches_of, resize_to, scale

FITS = {"pad": pad_to, "crop": crop_to, "resize": resize_to}


class Preprocessing(nn.Module):
    """Converts images (N, C, H, W) uint8 to inputs of the net, float32 (N, C, size, size).

    Pixel values 0 to 255 are mapped to `low` to `high`, the size is changed as `fit` says (pad,
    crop or resize), and `mean` (C, size, size) is subtracted last. With `test_patches` "nine" or
    "ten", an image becomes that many patches: (N, V, C, size, size). `image_size` is the side of
    the data set's images in pixels, `classes` are the names of the net's scores.
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
        self.register_buffer("mean", mean, persistent=False)  # not in the state_dict of the weights

    def stored(self) -> dict[str, Any]:
        """The arguments for an equal object, as plain values and a tensor."""
        names = ("low", "high", "size", "fit", "channels", "image_size", "classes", "test_patches")
        mean = None if self.mean is None else self.mean.cpu()
        return {name: getattr(self, name) for name in names} | {"mean": mean}

    def to_input(self, images: Tensor) -> Tensor:
        """Inputs as in training, with one patch for each image."""
        size, fit, ends = self.size, FITS[self.fit], (self.low, self.high)
        if images.shape[2:] == (size, size):
            images = scale(images, *ends)
        elif fit is resize_to:  # scaling commutes with resizing, and is cheaper before it
            # Large images in parts: a whole batch would take much memory in float32. Batches of an
            # exported net can have any size, so that the number of parts is not known.
            several = not torch.compiler.is_exporting()
            parts = images.split(max(1, 2**21 // images.shape[2:].numel())) if several else [images]
            images = torch.cat([resize_to(scale(part, *ends), size) for part in parts])
        else:
            images = scale(fit(images, size), *ends)
        return images if self.mean is None else images.sub_(self.mean)

    @property
    def form(self) -> Form:
        digits = self.classes == [str(number) for number in range(10)]
        return Form(self.channels, self.image_size, digits)

    def read(self, picture: Any) -> tuple[np.ndarray, dict[str, bool]]:
        """A picture in the form of the data set's images; see `read_picture`."""
        return read_picture(picture, self.form)

    def forward(self, images: Tensor) -> Tensor:
        if self.test_patches == "centre":
            return self.to_input(images)
        patches = patches_of(images, self.size, self.test_patches)
        return self.to_input(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])

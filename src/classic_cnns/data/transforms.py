"""Batched transforms on the batch's device: augmentations, and changes of size.

Augmentations get their random numbers as an argument: `draws` says how many uniform numbers an
augmentation needs for each image, and it gets a tensor (B, draws) in [0, 1). The same numbers
change an image in the same way on any device, in any batch, on any rank. Images (B, C, H, W) are
uint8, or float32 in the same range of 0 to 255 after an augmentation that interpolates. Those that
need statistics of the training images have `partial_fit`, which gets parts of them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class RandomShift:
    """Shift each image by up to `pixels` in both directions; new pixels are background (0).

    The horizontal and vertical translations of L98, III.B; elsewhere a "random crop with padding".
    """

    draws = 2

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    def __call__(self, images: Tensor, noise: Tensor) -> Tensor:
        return random_windows(F.pad(images, [self.pixels] * 4), noise, *images.shape[2:])


class RandomCrop:
    """Crop each image to `size` x `size` at a uniformly random place (K12, 4.1)."""

    draws = 2

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, images: Tensor, noise: Tensor) -> Tensor:
        return random_windows(images, noise, self.size, self.size)


class RandomFlip:
    """Mirror half of the images horizontally."""

    draws = 1

    def __call__(self, images: Tensor, noise: Tensor) -> Tensor:
        both = torch.cat([images, images.flip(3)])  # selecting rows is faster than torch.where
        row = torch.arange(len(images), device=images.device)
        return both.index_select(0, row + len(images) * (noise[:, 0] < 0.5))


class RandomAffine:
    """The planar affine distortions of L98, III.B, about the centre of square images.

    In this order: squeezing (widths divided and heights multiplied by 1 +- `squeeze`, or the
    reverse), horizontal shearing (by +- `shear` of the height), scaling (by 1 +- `scale`) and
    translation (by +- `shift` pixels in both directions). New pixels are background (0).
    """

    draws = 5

    def __init__(self, shift: float, scale: float, squeeze: float, shear: float) -> None:
        self.ranges = shift, shift, scale, squeeze, shear

    def __call__(self, images: Tensor, noise: Tensor) -> Tensor:
        size = images.shape[3]
        # Ranges are Python numbers: copying a tensor to the GPU would synchronise.
        numbers = zip((2 * noise - 1).split(1, 1), self.ranges, strict=True)
        right, down, scale, squeeze, shear = (number * limit for number, limit in numbers)  # (B, 1)
        # The source of each output pixel: the steps inverted from last to first. All pixels of a
        # row have the same y. Coordinates span -1 to 1.
        places = (2 * torch.arange(size, device=images.device) + 1) / size - 1
        y = (places - down * 2 / size) / (1 + scale)  # (B, S)
        x = (places - right * 2 / size) / (1 + scale)
        x = (1 + squeeze)[..., None] * (x[:, None, :] - (shear * y)[:, :, None])  # (B, S, S)
        y = (y / (1 + squeeze))[:, :, None].expand_as(x)
        if not len(images):
            return images.float()
        return F.grid_sample(images.float(), torch.stack([x, y], 3), align_corners=False)


class ColourNoise:
    """K12, 4.1: add one random colour to all pixels of an image, along the principal colour axes.

    The axes are the eigenvectors of the covariance of the channels over all training pixels. The
    noise along each axis is normal, with `strength` times the standard deviation of the pixels.
    """

    # Deviation: standard deviations, not eigenvalues, along the axes of the colour noise
    draws = 3

    def __init__(self, strength: float) -> None:
        self.strength = strength
        # Number, sum and products of the pixels: integers, so exact in any order.
        self.sums: tuple[Any, Any, Any] = 0, 0, 0

    def partial_fit(self, images: Tensor) -> None:
        """Update the axes with a part of the training images, (N, C, H, W) uint8."""
        pixels = images.cpu().transpose(0, 1).flatten(1).double()  # (3, N H W)
        count, total, products = self.sums
        count, total = count + pixels.shape[1], total + pixels.sum(1)
        products = products + pixels @ pixels.T
        self.sums = count, total, products
        mean = total / count
        variances, axes = torch.linalg.eigh(products / count - mean.outer(mean))
        self.axes = (axes * variances.clamp(min=0).sqrt()).float().to(images.device)

    def __call__(self, images: Tensor, noise: Tensor) -> Tensor:
        uniform = noise.clamp(min=2**-25)  # 0 would give minus infinity
        apple = uniform.device.type == "mps"  # has no ndtri
        normal = 2**0.5 * (2 * uniform - 1).erfinv() if apple else torch.special.ndtri(uniform)
        colours = self.strength * normal @ self.axes.T  # (B, 3)
        return to_float(images).add_(colours[:, :, None, None])


def random_windows(images: Tensor, noise: Tensor, height: int, width: int) -> Tensor:
    """Crop each image to `height` x `width` at its own place, from `noise` (B, 2) in [0, 1)."""
    count, channels, rows, pitch = images.shape
    if not count:  # a rank's share of a last batch can be empty
        return images[:, :, :height, :width]
    top = (noise[:, 0] * (rows - height + 1)).long()
    left = (noise[:, 1] * (pitch - width + 1)).long()
    # A window is one run of memory from its first to its last pixel; copying runs takes a tenth
    # of the time of indexing pixels.
    length = (height - 1) * pitch + width
    planes = torch.arange(count * channels, device=images.device) * rows * pitch
    starts = planes + (top * pitch + left).repeat_interleave(channels)
    if images.device.type == "mps":  # would first copy all runs, which overlap: up to 90 GB
        y, x = (torch.arange(size, device=images.device) for size in (height, width))
        return images.flatten()[starts.view(count, channels, 1, 1) + y[:, None] * pitch + x]
    runs = images.flatten().as_strided((images.numel() - length + 1, length), (1, 1))
    shape, strides = (count, channels, height, width), (channels * length, length, pitch, 1)
    return runs.index_select(0, starts).as_strided(shape, strides)


def pad_to(images: Tensor, size: int) -> Tensor:
    """Pad images with background (0) to `size` x `size`: (N, C, size, size)."""
    height, width = images.shape[2:]
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(images, (left, size - width - left, top, size - height - top))


def crop_to(images: Tensor, size: int) -> Tensor:
    """The central `size` x `size` pixels: (N, C, size, size)."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]


def patches_of(images: Tensor, size: int, which: str) -> Tensor:
    """Several `size` x `size` patches of each image for multi-crop testing: (N, V, C, size, size).

    "ten" are the four corners, the centre, and their mirror images (K12, 4.1). "nine" are left,
    centre and right of top, middle and bottom, as in cuda-convnet's multiview test.
    """
    bottom, right = (side - size for side in images.shape[2:])
    rows, columns = (0, bottom // 2, bottom), (0, right // 2, right)
    places = [(row, column) for row in rows for column in columns]
    views = [images[:, :, row : row + size, column : column + size] for row, column in places]
    if which == "ten":
        views = [views[number] for number in (0, 2, 6, 8, 4)]
        views += [view.flip(3) for view in views]
    return torch.stack(views, 1)


def resize_to(images: Tensor, size: int) -> Tensor:
    """Resize by bilinear interpolation with antialiasing: (N, C, size, size) float32."""
    return F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)


def scale(images: Tensor, low: float, high: float) -> Tensor:
    """Convert pixels to float32, 0 to `low` and 255 to `high`."""
    return to_float(images).mul_((high - low) / 255).add_(low)


def to_float(images: Tensor) -> Tensor:
    """A float32 copy to compute in, since mixed types would take another one for each operation."""
    return images.to(torch.float32, copy=True)

"""Batched transforms on the device of the batch.

Randomness comes in as numbers: a random transform says in `draws` how many uniform numbers it
needs for each image and gets them as a tensor (B, draws) in [0, 1). So the same numbers distort
the same image in the same way on any device, in any batch, on any rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class RandomShift:
    """Move each image by up to `pixels` in both directions; what comes in is background (0).

    (B, C, H, W) uint8 to the same, as the horizontal and vertical translations of L98, III.C.
    """

    draws = 2

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    def __call__(self, images: Tensor, noise: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        if not count:  # a rank's share of a last batch can be empty
            return images
        top, left = (noise * (2 * self.pixels + 1)).long().unbind(1)
        padded = F.pad(images, [self.pixels] * 4)
        pitch = padded.shape[3]
        # A window is one run of bytes from its first to its last pixel: a tenth of the time of
        # indexing pixel by pixel.
        length = (height - 1) * pitch + width
        runs = padded.flatten().as_strided((padded.numel() - length + 1, length), (1, 1))
        planes = torch.arange(count * channels, device=images.device) * padded.shape[2] * pitch
        starts = planes + (top * pitch + left).repeat_interleave(channels)
        shape, strides = images.shape, (channels * length, length, pitch, 1)
        return runs.index_select(0, starts).as_strided(shape, strides)


def pad_to(images: Tensor, size: int) -> Tensor:
    """Put images in the middle of `size` x `size` background (0): (N, C, size, size)."""
    height, width = images.shape[2:]
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(images, (left, size - width - left, top, size - height - top))


def scale(images: Tensor, low: float, high: float) -> Tensor:
    """uint8 pixels to float32, 0 to `low` and 255 to `high`."""
    return images.float().mul_((high - low) / 255).add_(low)

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
        height, width = images.shape[2:]
        top, left = (noise * (2 * self.pixels + 1)).long().unbind(1)
        padded = F.pad(images, [self.pixels] * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, top, left, H, W), a view
        # The three indices side by side: else the result is not contiguous, and slow to convert.
        windows = windows.permute(0, 2, 3, 1, 4, 5)
        return windows[torch.arange(len(images), device=images.device), top, left]


def pad_to(images: Tensor, size: int) -> Tensor:
    """Put images in the middle of `size` x `size` background (0): (N, C, size, size)."""
    height, width = images.shape[2:]
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(images, (left, size - width - left, top, size - height - top))


def scale(images: Tensor, low: float, high: float) -> Tensor:
    """uint8 pixels to float32, 0 to `low` and 255 to `high`."""
    return images.float().mul_((high - low) / 255).add_(low)

"""The kernels of a first layer as one picture, like Fig. 3 of the AlexNet paper."""

import torch
from torch import Tensor
from torchvision.utils import make_grid


def picture(kernels: Tensor, towers: int) -> Tensor:
    """Kernels (N, C, h, w) as an image (3, H, W) from 0 to 1, the towers side by side.

    Each kernel has its own contrast. Three channels are shown as red, green and blue, others in
    grey by their mean; a weight is four pixels wide.
    """
    if kernels.shape[1] != 3:
        kernels = kernels.mean(1, keepdim=True)
    large = kernels.repeat_interleave(4, 2).repeat_interleave(4, 3)
    grids = [
        make_grid(tower, nrow=6, padding=4, normalize=True, scale_each=True, pad_value=1)
        for tower in large.chunk(towers)
    ]
    return torch.cat(grids, 2)

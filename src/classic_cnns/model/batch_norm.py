"""Batch normalisation, written from its equations.

Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
Covariate Shift", ICML 2015 (arXiv:1502.03167), Algorithms 1 and 2. Equivalent to `nn.BatchNorm1d`
and `nn.BatchNorm2d`, with the same names, so that state_dicts can be exchanged.
"""

import torch
from torch import Tensor, nn


class BatchNorm(nn.Module):
    """Batch normalisation of (B, C) features or (B, C, H, W) maps, channel by channel.

    `momentum` is the weight of the new value, as in torch (the d2l tutorial's 0.9: of the old one).
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))  # gamma
        self.bias = nn.Parameter(torch.zeros(channels))  # beta
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))  # only for the state_dict

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() not in (2, 4):
            raise ValueError(f"expected 2D or 4D input (got {images.dim()}D input)")
        x = images.to(self.weight.dtype)  # under autocast input and output are bfloat16
        # The mode decides, not whether gradients are enabled: eval() does not change statistics.
        mean, var = self._measure(x) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * (var + self.eps).rsqrt()
        shape = (-1, 1, 1) if x.dim() == 4 else (-1,)  # (C, 1, 1) broadcasts over (B, C, H, W)
        y = (x - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)
        return y.to(images.dtype)

    def _measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) of this batch; also updates the running statistics."""
        samples = x.numel() // x.size(1)
        if samples == 1:
            # One value minus its mean is 0: the output would be beta for any input.
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.shape}"
            )
        axes = (0, 2, 3) if x.dim() == 4 else (0,)
        mean, var = x.mean(axes), x.var(axes, correction=0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            # Alg. 2, step 10: the batch is normalised by the biased variance, but the running
            # variance is the unbiased estimate for all images, hence m / (m - 1).
            self.running_var.lerp_(var * samples / (samples - 1), self.momentum)
        return mean, var


def norm_layer(norm: str, channels: int, *, maps: bool) -> nn.Module:
    """The normalisation that `model.net.norm` names, for (B, C, H, W) `maps` or (B, C) features."""
    torchs = nn.BatchNorm2d if maps else nn.BatchNorm1d
    return {"none": nn.Identity, "batch": BatchNorm, "torch": torchs}[norm](channels)

"""cuda-convnet's networks for CIFAR-10: 80sec, 18pct, conv-local-13pct and conv-local-11pct.

Krizhevsky's example-layers/*.cfg of 2011 and 2012, the nets behind section 3.3 of "ImageNet
Classification with Deep Convolutional Neural Networks" (NIPS 2012): 13 % without, 11 % with local
response normalisation. As there, the layers are listed in the configuration, one per line and from
the image to the scores: `conf/model/convnet_cifar10*.yaml`. This file holds what a line can name.

The initial weights are made for pixels of 0..255 less the per-pixel mean of the training set; the
learning rates and the weight decay per layer are in `conf/optim/convnet_cifar10*.yaml`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classic_cnns.model.batch_norm import norm_layer
from classic_cnns.model.local_response_norm import LocalResponseNorm

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


class LocallyConnected2d(nn.Module):
    """A convolution that shares nothing: own filters and own biases at every position.

    Stride 1. (B, C, H, W) -> (B, O, H', W'); `weight[y, x, i, j, c, o]` is what output map o at
    (y, x) takes from input map c at (y + i, x + j) of the padded image.
    """

    def __init__(self, shape: torch.Size, filters: int, kernel_size: int, padding: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.kernel_size, self.padding = kernel_size, padding
        self.height = height + 2 * padding - kernel_size + 1
        self.width = width + 2 * padding - kernel_size + 1
        self.connections_per_position = filters * (kernel_size**2 * channels + 1)
        self.bias = nn.Parameter(torch.zeros(self.height, self.width, filters))
        self.weight = nn.Parameter(
            torch.zeros(self.height, self.width, kernel_size, kernel_size, channels, filters)
        )

    def forward(self, images: Tensor) -> Tensor:
        batch, pad = images.size(0), self.padding
        # Positions first: one matrix product (B, kkC) x (kkC, O) for each of them. Gathering the
        # windows from shifted copies is three times as fast as F.unfold, forward and backward.
        x = F.pad(images.permute(2, 3, 0, 1), (0, 0, 0, 0, pad, pad, pad, pad))  # (H, W, B, C)
        windows = torch.cat(
            [
                x[i : i + self.height, j : j + self.width]
                for i in range(self.kernel_size)
                for j in range(self.kernel_size)
            ],
            dim=-1,
        )  # (H', W', B, kkC)
        positions = self.height * self.width
        y = torch.baddbmm(
            self.bias.view(positions, 1, -1),
            windows.view(positions, batch, -1),
            self.weight.view(positions, windows.size(-1), -1),
        )  # (H'W', B, O)
        return y.view(self.height, self.width, batch, -1).permute(2, 3, 0, 1)


class SameMapNorm(nn.Module):
    """`rnorm`: x / (1 + scale * mean of x^2 over size x size neighbours in the same map)^power.

    The mean is over all size^2 places, those outside the map counted as zeros.
    """

    def __init__(self, size: int, scale: float, power: float) -> None:
        super().__init__()
        self.size, self.scale, self.power = size, scale, power

    def forward(self, x: Tensor) -> Tensor:
        energy = F.avg_pool2d(x.square(), self.size, stride=1, padding=self.size // 2)
        return x * (1 + self.scale * energy).pow(-self.power)  # (B, C, H, W)


class FullyConnected(nn.Linear):
    """`nn.Linear` on everything that one image has left: (B, ...) -> (B, outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


# What the `type` of a line can name. Each gets the shape of its input, (C, H, W) or (features,),
# and the other values of the line.


def gaussian(layer: nn.Module, init_std: float) -> nn.Module:
    """Draw the weights from N(0, initW^2); the biases begin at 0."""
    nn.init.normal_(layer.get_parameter("weight"), std=init_std)
    nn.init.zeros_(layer.get_parameter("bias"))
    return layer


def conv(
    shape: torch.Size, *, filters: int, kernel_size: int, padding: int, init_std: float
) -> nn.Module:
    return gaussian(nn.Conv2d(shape[0], filters, kernel_size, padding=padding), init_std)


def local(
    shape: torch.Size, *, filters: int, kernel_size: int, padding: int, init_std: float
) -> nn.Module:
    return gaussian(LocallyConnected2d(shape, filters, kernel_size, padding), init_std)


def fc(shape: torch.Size, *, outputs: int, init_std: float) -> nn.Module:
    return gaussian(FullyConnected(shape.numel(), outputs), init_std)


def max_pool(_: torch.Size, *, size: int, stride: int) -> nn.Module:
    # cuda-convnet's last window may hang over the edge: 32 -> 16 -> 8 -> 4, not 15, 7, 3.
    return nn.MaxPool2d(size, stride, ceil_mode=True)


def avg_pool(_: torch.Size, *, size: int, stride: int) -> nn.Module:
    # torch, too, divides a window that hangs over the edge by the part that lies inside.
    return nn.AvgPool2d(size, stride, ceil_mode=True)


def rnorm(_: torch.Size, *, size: int, scale: float, power: float) -> nn.Module:
    return SameMapNorm(size, scale, power)


def cmrnorm(_: torch.Size, *, size: int, scale: float, power: float) -> nn.Module:
    # cuda-convnet divides its scale by the size of the window, and its k is 1.
    return LocalResponseNorm(
        size=size, alpha=scale, beta=power, k=1.0, groups=1, divide_by_size=True
    )


class ConvNetCifar10(nn.Sequential):
    """(B, in_channels, image_size, image_size) -> (B, num_classes), through the lines of `layers`.

    A line is `{name, type, ...}`; the type `scores` is the `fc` whose outputs are the classes, and
    `neuron` is the net's `activation`. Parameters at 3 channels and 10 classes:

        80sec                145,578    32x32
        18pct                 89,578    32x32
        conv-local-13pct   1,116,490    24x24; the first revision of 11pct adds no parameters to it
        conv-local-11pct   2,112,970    24x24

    `norm` follows every weighted layer but the scores, before anything else.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int,
        activation: str,
        norm: str,
        layers: Iterable[Mapping[str, Any]],
    ) -> None:
        super().__init__()
        weighted: dict[str, Callable[..., nn.Module]] = {"conv": conv, "local": local, "fc": fc}
        types = weighted | {
            "max_pool": max_pool,
            "avg_pool": avg_pool,
            "rnorm": rnorm,
            "cmrnorm": cmrnorm,
            "neuron": lambda _: ACTIVATIONS[activation](),
            "scores": lambda shape, **values: fc(shape, outputs=num_classes, **values),
        }
        x = torch.zeros(1, in_channels, image_size, image_size)  # goes ahead to find the shapes
        for line in layers:
            values = dict(line)
            name, kind = values.pop("name"), values.pop("type")
            if kind not in types:
                allowed = ", ".join(types)
                raise ValueError(f"model.net.layers: {name} has type {kind}; allowed are {allowed}")
            layer = types[kind](x.shape[1:], **values)
            with torch.no_grad():
                x = layer(x)
            self.add_module(name, layer)
            if kind in weighted:
                self.add_module(f"{name}_norm", norm_layer(norm, x.size(1), maps=x.dim() == 4))

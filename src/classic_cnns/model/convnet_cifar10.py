"""cuda-convnet's networks for CIFAR-10: 80sec, 18pct, conv-local-13pct and conv-local-11pct.

Krizhevsky's example-layers/*.cfg of 2011 and 2012, the nets behind section 3.3 of "ImageNet
Classification with Deep Convolutional Neural Networks" (NIPS 2012): 13 % without, 11 % with local
response normalisation. As there, the layers are listed in the configuration, one per line and from
the image to the scores: `conf/model/convnet_cifar10*.yaml`. The layers are below.

The initial weights are made for pixels of 0..255 less the per-pixel mean of the training set; the
learning rates and the weight decay per layer are in `conf/optim/convnet_cifar10*.yaml`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classic_cnns.model.alexnet import ACTIVATIONS
from classic_cnns.model.batch_norm import norm_layer
from classic_cnns.model.local_response_norm import LocalResponseNorm


class LocallyConnected2d(nn.Module):
    """A convolution without weight sharing: separate filters and biases at every position.

    Stride 1. (B, C, H, W) -> (B, O, H', W'); `weight[y, x, i, j, c, o]` is the weight of the input
    map c at (y + i, x + j) of the padded image for the output map o at (y, x).
    """

    def __init__(self, shape: torch.Size, filters: int, kernel_size: int, padding: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.kernel_size, self.padding = kernel_size, padding
        self.height = height + 2 * padding - kernel_size + 1
        self.width = width + 2 * padding - kernel_size + 1
        self.connections_per_position = filters * (kernel_size**2 * channels + 1)
        places = self.height, self.width
        self.bias = nn.Parameter(torch.zeros(*places, filters))
        self.weight = nn.Parameter(
            torch.zeros(*places, kernel_size, kernel_size, channels, filters)
        )

    def forward(self, images: Tensor) -> Tensor:
        batch, pad = images.size(0), self.padding
        # One matrix product (B, kkC) x (kkC, O) for each position. Gathering the windows from
        # shifted copies is three times as fast as F.unfold, forward and backward.
        x = F.pad(images.permute(2, 3, 0, 1), (0, 0, 0, 0, pad, pad, pad, pad))  # (H, W, B, C)
        kernel = [(i, j) for i in range(self.kernel_size) for j in range(self.kernel_size)]
        shifted = [x[i : i + self.height, j : j + self.width] for i, j in kernel]
        windows = torch.cat(shifted, -1).flatten(0, 1)  # (H'W', B, kkC)
        weight = self.weight.flatten(0, 1).flatten(1, 3)  # (H'W', kkC, O)
        y = torch.baddbmm(self.bias.flatten(0, 1)[:, None], windows, weight)  # (H'W', B, O)
        return y.view(self.height, self.width, batch, -1).permute(2, 3, 0, 1)


class SameMapNorm(nn.Module):
    """`rnorm`: x / (1 + scale * mean of x^2 over size x size neighbours in the same map)^power.

    The mean is over all size^2 positions; those outside the map are zeros.
    """

    def __init__(self, size: int, scale: float, power: float) -> None:
        super().__init__()
        self.size, self.scale, self.power = size, scale, power

    def forward(self, x: Tensor) -> Tensor:
        energy = F.avg_pool2d(x.square(), self.size, stride=1, padding=self.size // 2)
        return x * (1 + self.scale * energy).pow(-self.power)  # (B, C, H, W)


class FullyConnected(nn.Linear):
    """`nn.Linear` on all features of an image: (B, ...) -> (B, outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


# The types of layers, except those that depend on the net. Each is called with the shape of its
# input, (C, H, W) or (features,), and the other values of the line.
LAYERS: dict[str, Callable[..., nn.Module]] = {
    "conv": lambda shape, *, filters, kernel_size, padding: nn.Conv2d(
        shape[0], filters, kernel_size, padding=padding
    ),
    "local": LocallyConnected2d,
    "fc": lambda shape, *, outputs: FullyConnected(shape.numel(), outputs),
    # cuda-convnet's last window may extend over the edge: 32 -> 16 -> 8 -> 4, not 15, 7, 3. Its
    # average is that of the part inside the map, as in torch.
    "max_pool": lambda _, *, size, stride: nn.MaxPool2d(size, stride, ceil_mode=True),
    "avg_pool": lambda _, *, size, stride: nn.AvgPool2d(size, stride, ceil_mode=True),
    "rnorm": lambda _, **values: SameMapNorm(**values),
    # cuda-convnet divides its scale by the size of the window, and its k is 1.
    "cmrnorm": lambda _, *, size, scale, power: LocalResponseNorm(
        size=size, alpha=scale, beta=power, k=1.0, groups=1, divide_by_size=True
    ),
}


class ConvNetCifar10(nn.Sequential):
    """(B, in_channels, image_size, image_size) -> (B, num_classes), with the layers in `layers`.

    A line is `{name, type, ...}`; the type `scores` is the `fc` whose outputs are the classes, and
    `neuron` is the net's `activation`. `norm` directly follows each layer with weights except the
    scores.
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
        types = LAYERS | {
            "neuron": lambda _: ACTIVATIONS[activation](),
            "scores": lambda shape: LAYERS["fc"](shape, outputs=num_classes),
        }
        x = torch.zeros(1, in_channels, image_size, image_size)  # finds the layers' shapes
        for line in layers:
            values = dict(line)
            name, kind, std = values.pop("name"), values.pop("type"), values.pop("init_std", None)
            if kind not in types:
                allowed = ", ".join(types)
                raise ValueError(f"model.net.layers: {name} has type {kind}; allowed are {allowed}")
            layer = types[kind](x.shape[1:], **values)
            parameters = dict(layer.named_parameters())
            if parameters:
                nn.init.normal_(parameters["weight"], std=std)
                nn.init.zeros_(parameters["bias"])
            with torch.no_grad():
                x = layer(x)
            self.add_module(name, layer)
            if parameters and kind != "scores":
                self.add_module(f"{name}_norm", norm_layer(norm, x.size(1), maps=x.dim() == 4))

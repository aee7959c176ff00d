"""The small network of the generic CNN tutorial: blocks of 5x5 convolutions on 28x28 pixels."""

from torch import Tensor, nn

from classic_cnns.model.alexnet import POOLS
from classic_cnns.model.batch_norm import norm_layer


def conv_relu(in_channels: int, out_channels: int, norm: str, kernel: int = 5) -> list[nn.Module]:
    """A convolution that keeps the size of its maps, and a ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=kernel, padding=kernel // 2)
    return [conv, norm_layer(norm, out_channels, maps=True), nn.ReLU()]


class SimpleCNN(nn.Module):
    """(B, in_channels, 28, 28) -> (B, num_classes); 121,514 parameters at 1 channel, 10 classes.

    `extra_convs` convolutions 64 -> 64 are added before the linear layer, since the tutorial asks
    for the effect of one more. Each has 102,464 parameters, or 36,928 with an `extra_kernel` of 3
    pixels. `norm` is between every convolution and its ReLU.
    """

    def __init__(
        self, *, num_classes: int, in_channels: int, norm: str, extra_convs: int,
        extra_kernel: int = 5, pool: str = "max",  # defaults for configs of earlier versions
    ) -> None:  # fmt: skip
        super().__init__()
        pooling = POOLS[pool]
        self.conv1 = nn.Sequential(*conv_relu(in_channels, 16, norm), pooling(2))
        self.conv2 = nn.Sequential(*conv_relu(16, 32, norm), *conv_relu(32, 32, norm), pooling(2))
        self.conv3 = nn.Sequential(*conv_relu(32, 64, norm))
        self.extra = nn.Sequential(
            *[layer for _ in range(extra_convs) for layer in conv_relu(64, 64, norm, extra_kernel)]
        )
        self.out = nn.Linear(64 * 7 * 7, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images)  # (B, 16, 14, 14)
        x = self.conv2(x)  # (B, 32, 7, 7)
        x = self.conv3(x)  # (B, 64, 7, 7)
        x = self.extra(x)
        return self.out(x.flatten(1))  # (B, 3136) -> (B, num_classes)

"""A user's net, added in the three steps of the README."""

from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.conv2(self.conv1(x).relu())).relu()


class TinyResNet(nn.Module):
    """Images (B, C, H, W) to scores (B, classes)."""

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, stride=2, padding=1)
        self.block = Block(width)
        self.output = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.block(self.stem(images).relu()).mean((2, 3)))

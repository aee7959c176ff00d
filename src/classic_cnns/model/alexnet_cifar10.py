"""The tutorial's "AlexNet" for CIFAR-10: torchvision's variant with a smaller fc7.

This is not the net of Krizhevsky, Sutskever and Hinton, NIPS 2012 (that one is `alexnet.py`). It is
`torchvision.models.alexnet`, after Krizhevsky, "One weird trick for parallelizing convolutional
neural networks" (arXiv:1404.5997), with a second hidden layer of 1024. Differences from 2012:

- one tower with 64-192-384-256-256 kernels; 2012 has two with 96-256-384-384-256 together;
- no local response normalisation;
- dropout before fc6 and fc7; 2012 drops the outputs of fc6 and fc7;
- fc7 has 1024 units, not 4096;
- images of 96x96, whose last maps are 2x2: the adaptive pooling to 6x6 repeats each value nine
  times, so fc6's 9216 inputs are only 1024 different numbers;
- torch's initial weights; 2012 has N(0, 0.01), and biases of 1 in five layers.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from classic_cnns.model.batch_norm import norm_layer


class AlexNetCifar10(nn.Module):
    """(B, in_channels, 96, 96) -> (B, num_classes); 44,428,106 parameters at 3 and 10.

    `dropout` is the probability that an input of fc6 and of fc7 is dropped.
    `norm` precedes every ReLU.
    """

    def __init__(self, *, num_classes: int, in_channels: int, dropout: float, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=11, stride=4, padding=2)
        self.conv1_norm = norm_layer(norm, 64, maps=True)
        self.conv2 = nn.Conv2d(64, 192, kernel_size=5, padding=2)
        self.conv2_norm = norm_layer(norm, 192, maps=True)
        self.conv3 = nn.Conv2d(192, 384, kernel_size=3, padding=1)
        self.conv3_norm = norm_layer(norm, 384, maps=True)
        self.conv4 = nn.Conv2d(384, 256, kernel_size=3, padding=1)
        self.conv4_norm = norm_layer(norm, 256, maps=True)
        self.conv5 = nn.Conv2d(256, 256, kernel_size=3, padding=1)
        self.conv5_norm = norm_layer(norm, 256, maps=True)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2)
        self.resize = nn.AdaptiveAvgPool2d(6)
        self.dropout = nn.Dropout(dropout)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc6_norm = norm_layer(norm, 4096, maps=False)
        self.fc7 = nn.Linear(4096, 1024)
        self.fc7_norm = norm_layer(norm, 1024, maps=False)
        self.fc8 = nn.Linear(1024, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1_norm(self.conv1(images))))  # (B, 64, 23, 23) -> 11x11
        x = self.pool(F.relu(self.conv2_norm(self.conv2(x))))  # (B, 192, 11, 11) -> 5x5
        x = F.relu(self.conv3_norm(self.conv3(x)))  # (B, 384, 5, 5)
        x = F.relu(self.conv4_norm(self.conv4(x)))  # (B, 256, 5, 5)
        x = self.pool(F.relu(self.conv5_norm(self.conv5(x))))  # (B, 256, 5, 5) -> 2x2
        x = self.resize(x).flatten(1)  # (B, 256, 6, 6) -> (B, 9216)
        x = F.relu(self.fc6_norm(self.fc6(self.dropout(x))))  # (B, 4096)
        x = F.relu(self.fc7_norm(self.fc7(self.dropout(x))))  # (B, 1024)
        return self.fc8(x)  # (B, num_classes)

"""LeNet-5 as in today's tutorials: the maps of 1998, ReLU, plain pooling, a linear output.

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition",
Proc. IEEE 1998, section II.B, gives the layers and the table of C3. Differences: ReLU instead of
the scaled tanh, pooling without coefficients, a linear layer instead of the RBF units, torch's
initial weights. `lenet5.py` is the net of the paper.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from classic_cnns.model.alexnet import ACTIVATIONS, POOLS
from classic_cnns.model.batch_norm import norm_layer
from classic_cnns.model.lenet5 import C3_TABLE, FittedConv2d, TableConv2d


class SquaredErrorOneHot(nn.Module):
    """The tutorial's loss: mean over batch and outputs of (score - one-hot target)^2."""

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        targets = F.one_hot(labels, scores.size(1))  # (B,) -> (B, num_classes)
        return F.mse_loss(scores, targets.to(scores.dtype))


class LeNet5ReLU(nn.Module):
    """(B, in_channels, 32, 32) -> (B, num_classes).

    With 1 channel and 10 classes it has 60,806 parameters if `c3` is "table": sixteen filters with
    3, 4 or 6 input maps as in the paper's table; and 61,706 if it is "full": each filter has all
    six. `norm` precedes every `activation`.
    """

    def __init__(
        self, *, num_classes: int, in_channels: int, c3: str, pool: str, norm: str,
        activation: str = "relu",  # default for configs of earlier versions
    ) -> None:  # fmt: skip
        super().__init__()
        self.C1 = nn.Conv2d(in_channels, 6, kernel_size=5)
        self.C1_norm = norm_layer(norm, 6, maps=True)
        self.S2 = POOLS[pool](2)
        if c3 == "table":
            # Initial weights and biases as in torch's own convolutions.
            self.C3: nn.Module = TableConv2d(6, C3_TABLE, 5, lambda fan_in: fan_in**-0.5)
        else:
            self.C3 = nn.Conv2d(6, 16, kernel_size=5)
        self.C3_norm = norm_layer(norm, 16, maps=True)
        self.S4 = POOLS[pool](2)
        self.C5 = FittedConv2d(16, 120, kernel_size=5)
        self.C5_norm = norm_layer(norm, 120, maps=True)
        self.F6 = nn.Linear(120, 84)
        self.F6_norm = norm_layer(norm, 84, maps=False)
        self.output = nn.Linear(84, num_classes)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, images: Tensor) -> Tensor:
        act = self.activation
        x = act(self.C1_norm(self.C1(images)))  # (B, 6, 28, 28)
        x = self.S2(x)  # (B, 6, 14, 14)
        x = act(self.C3_norm(self.C3(x)))  # (B, 16, 10, 10)
        x = self.S4(x)  # (B, 16, 5, 5)
        x = act(self.C5_norm(self.C5(x)))  # (B, 120, 1, 1)
        x = act(self.F6_norm(self.F6(x.flatten(1))))  # (B, 84)
        return self.output(x)  # (B, num_classes)

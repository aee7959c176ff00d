"""LeNet-5 as published in 1998: every layer, constant and initial range of the paper.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, *Gradient-Based Learning Applied to Document
Recognition*, Proceedings of the IEEE 86(11), 1998. Section and equation numbers refer to it.

                 output      trainable   connections
    input       1x32x32
    C1          6x28x28            156       122,304   convolution 5x5
    S2          6x14x14             12         5,880   subsampling 2x2
    C3         16x10x10          1,516       151,600   convolution 5x5, table I
    S4         16x 5x 5             32         2,000   subsampling 2x2
    C5        120x 1x 1         48,120        48,120   convolution 5x5
    F6               84         10,164        10,164   fully connected
    output           10              0           840   Euclidean RBF, fixed bitmaps
                                60,000       340,908
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classic_cnns.model.batch_norm import norm_layer

# Table I: the S2 maps that each of the sixteen C3 maps uses.
C3_TABLE = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),  # neighbouring triples
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),  # quadruples with a gap
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# Figure 3: the digits as 7x12 bitmaps, ink is +1 and paper is -1. One row of 7 pixels is one
# hexadecimal number, its highest bit the left pixel.
BITMAPS = (
    "3e 00 1c 36 63 63 63 63 36 1c 00 00",
    "0c 1c 3c 0c 0c 0c 0c 0c 0c 3f 00 00",
    "3e 00 3e 63 43 06 1c 30 60 7f 00 00",
    "7f 03 06 0c 1e 03 03 03 63 3e 00 00",
    "3e 00 00 33 33 73 63 63 67 3f 03 03",
    "3e 00 7f 60 60 3c 1e 03 63 3e 00 00",
    "1e 30 60 60 7e 73 63 63 73 3e 00 00",
    "7f 03 03 06 0c 0c 18 18 18 18 00 00",
    "3e 63 63 63 3e 63 63 63 63 3e 00 00",
    "3e 67 63 63 67 3f 03 03 06 3c 00 00",
)

A, S = 1.7159, 2 / 3  # amplitude and slope of the squashing function, appendix A


def digit_bitmaps() -> Tensor:
    """The ten bitmaps of figure 3: (10, 12, 7) float32, ink +1, paper -1."""
    rows = torch.tensor([[int(row, 16) for row in digit.split()] for digit in BITMAPS])
    bits = rows[..., None] >> torch.arange(6, -1, -1) & 1  # (10, 12, 7)
    return bits.float() * 2 - 1


class ScaledTanh(nn.Module):
    """The squashing function f(a) = A tanh(S a) of eq. 6, with f(1) = 1 and f(-1) = -1."""

    def forward(self, a: Tensor) -> Tensor:
        # A tanh(S a) = 2A sigmoid(2S a) - A, and on CPUs torch's sigmoid is seven times as fast.
        return (2 * S * a).sigmoid_().mul(2 * A).sub_(A)


class Subsampling(nn.Module):
    """S2 and S4: the sum of 2x2 neighbours times a coefficient, plus a bias, both one per map.

    Section II.A has the average, II.B the sum; the functions are the same, and this is II.B's.
    (B, C, H, W) to (B, C, H // 2, W // 2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.empty(channels, 1, 1))
        self.bias = nn.Parameter(torch.empty(channels, 1, 1))
        self.connections_per_position = 5 * channels  # four inputs and a bias for each unit
        uniform_([self.coefficient, self.bias], paper_bound(4))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        rows = x[:, :, 0:height:2] + x[:, :, 1:height:2]  # a third of the time of avg_pool2d
        sums = rows[..., 0:width:2] + rows[..., 1:width:2]
        return self.bias + self.coefficient * sums


# S2 and S4 by name; each gets the number of its maps.
SUBSAMPLINGS: dict[str, Callable[[int], nn.Module]] = {
    "trainable": Subsampling,
    "average": lambda channels: nn.AvgPool2d(2),
    "max": lambda channels: nn.MaxPool2d(2),
}


class FittedConv2d(nn.Conv2d):
    """A convolution, computed as a matrix product if the image has the size of the kernel."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != self.weight.shape[2:]:
            return super().forward(x)
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[..., None, None]


class TableConv2d(nn.Module):
    """C3: a convolution in which output map i uses only the input maps `table[i]`.

    Only connected kernels are parameters: `weight` has them in the order of the table, shape
    (pairs, k, k). Those of a map with fan-in F start uniform in +-`bound(F)`. (B, C, H, W) to
    (B, len(table), H-k+1, W-k+1).
    """

    pairs: Tensor

    def __init__(
        self,
        in_channels: int,
        table: tuple[tuple[int, ...], ...],
        kernel_size: int,
        bound: Callable[[int], float],
    ) -> None:
        super().__init__()
        self.shape = len(table), in_channels, kernel_size, kernel_size
        self.weight = nn.Parameter(torch.empty(sum(map(len, table)), kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(len(table)))
        pairs = [i * in_channels + j for i, row in enumerate(table) for j in row]
        self.register_buffer("pairs", torch.tensor(pairs), persistent=False)
        start = 0
        for i, row in enumerate(table):  # a map with more inputs has smaller initial weights
            parameters = [self.weight[start : start + len(row)], self.bias[i]]
            uniform_(parameters, bound(len(row) * kernel_size**2))
            start += len(row)

    def dense_weight(self) -> Tensor:
        """The kernels with zeros where nothing is connected: (out, in, k, k)."""
        out_channels, in_channels, k, _ = self.shape
        zeros = self.weight.new_zeros(out_channels * in_channels, k, k)
        return zeros.index_copy(0, self.pairs, self.weight).view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.dense_weight(), self.bias)


class EuclideanRBF(nn.Module):
    """Eq. 7: the squared distance of the 84 F6 units to each class's bitmap.

    (B, 84, H, W) to (B, 10, H, W), at least 0, small for a likely class. The bitmaps are "kept
    fixed (at least initially)"; with `learned` they are weights like any other (section II.C).
    """

    weight: Tensor

    def __init__(self, learned: bool = False) -> None:
        super().__init__()
        bitmaps = digit_bitmaps().flatten(1)  # (10, 84)
        if learned:
            self.weight = nn.Parameter(bitmaps)
        else:
            self.register_buffer("weight", bitmaps)
        self.connections_per_position = self.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] - self.weight[..., None, None]).square().sum(2)


class LeNet5(nn.Module):
    """Digits, (B, 1, 32, 32) float32 in -0.1 to 1.175, to scores (B, 10).

    A score is the negative RBF penalty of eq. 7. Larger images give larger C5 maps, and then
    scores for each position (section VII): (B, 10, H', W').

    `c3` is "table", or "full": every map uses all six. `subsampling` is the paper's "trainable", or
    "average" or "max", which have no weights; `rbf` is "fixed" or "learned"; `norm` precedes
    the squashing of C1, C3, C5 and F6. Configs of earlier versions do not have these keys.
    """

    def __init__(
        self, *, c3: str = "table", subsampling: str = "trainable", rbf: str = "fixed",
        norm: str = "none",
    ) -> None:  # fmt: skip
        super().__init__()
        table = C3_TABLE if c3 == "table" else (tuple(range(6)),) * 16
        self.C1 = nn.Conv2d(1, 6, 5)
        self.S2 = SUBSAMPLINGS[subsampling](6)
        self.C3 = TableConv2d(6, table, 5, paper_bound)
        self.S4 = SUBSAMPLINGS[subsampling](16)
        self.C5 = FittedConv2d(16, 120, 5)
        self.F6 = FittedConv2d(120, 84, 1)  # a full connection, at each position of C5
        self.output = EuclideanRBF(rbf == "learned")
        self.C1_norm = norm_layer(norm, 6, maps=True)
        self.C3_norm = norm_layer(norm, 16, maps=True)
        self.C5_norm = norm_layer(norm, 120, maps=True)
        self.F6_norm = norm_layer(norm, 84, maps=True)
        self.squash = ScaledTanh()
        paper_init(self.C1, self.C5, self.F6)

    def features(self, images: Tensor) -> Tensor:
        """The units of F6, which the output layer compares with the bitmaps."""
        x = self.squash(self.C1_norm(self.C1(images)))  # (B, 6, 28, 28)
        x = self.squash(self.S2(x))  # (B, 6, 14, 14)
        x = self.squash(self.C3_norm(self.C3(x)))  # (B, 16, 10, 10)
        x = self.squash(self.S4(x))  # (B, 16, 5, 5)
        x = self.squash(self.C5_norm(self.C5(x)))  # (B, 120, 1, 1)
        return self.squash(self.F6_norm(self.F6(x)))  # (B, 84, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        scores = -self.output(self.features(images))  # (B, 10, 1, 1)
        return scores.flatten(1) if scores.shape[2:] == (1, 1) else scores


class MLELoss(nn.Module):
    """Eq. 8: the mean penalty of the correct class. Scores (B, 10), labels (B,) to a scalar."""

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        return -scores.gather(1, labels[:, None]).mean()


class MAPLoss(nn.Module):
    """Eq. 9: eq. 8, plus a term that increases penalties of wrong classes that are not above j.

    E = mean[ y_D + log(exp(-j) + sum_i exp(-y_i)) ] >= 0, where exp(-j) is a "rubbish" class. The
    paper gives no value for j > 0. Scores (B, 10), labels (B,) to a scalar.
    """

    def __init__(self, j: float) -> None:
        super().__init__()
        self.j = j

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(F.pad(scores, (0, 1), value=-self.j), labels)


def penalty_loss(j: float | None) -> nn.Module:
    """The loss of eq. 9, or without j that of eq. 8: the paper does not say which one it used."""
    return MLELoss() if j is None else MAPLoss(j)


def paper_bound(fan_in: int) -> float:
    """Appendix A: the weights and biases of a unit with `fan_in` inputs start in +- this."""
    return 2.4 / fan_in


def paper_init(*layers: nn.Linear | nn.Conv2d) -> None:
    """Start the weights and biases of `layers` as in appendix A."""
    for layer in layers:
        uniform_(layer.parameters(), paper_bound(layer.weight[0].numel()))


@torch.no_grad()
def uniform_(parameters: Iterable[Tensor], bound: float) -> None:
    for parameter in parameters:
        parameter.uniform_(-bound, bound)

"""Nets compared with LeNet-5 in Fig. 9 of its paper: linear, fully connected, LeNet-1 and LeNet-4.

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc.
IEEE 1998, section III.C. Initial weights and activation are those of LeNet-5; the scores are linear
units.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from classic_cnns.model.lenet5 import ScaledTanh, Subsampling, TableConv2d, paper_bound, paper_init

# The S2 maps that each of the twelve C3 maps uses: LeCun et al., "Handwritten digit
# recognition with a back-propagation network", NIPS 1989, table 1.
LENET1_TABLE = tuple(
    tuple(i + first for i in maps)
    for first in (0, 2)
    for maps in ((0,), (0, 1), (0, 1), (1,), (0, 1), (0, 1))
)

# The S2 maps that each of the sixteen C3 maps of LeNet-4 uses. The paper does not say which: with
# three for each map, the net has the 260,000 connections that it states.
LENET4_TABLE = tuple(
    tuple((first + step * i) % 8 for i in range(3)) for step in (1, 2) for first in range(8)
)


class MLP(nn.Sequential):
    """Fully connected: (B, 1, side, side) -> (B, num_classes); without `hidden_layers`, linear."""

    def __init__(self, *, num_classes: int, side: int, hidden_layers: Sequence[int]) -> None:
        super().__init__(nn.Flatten())
        sizes = [side**2, *hidden_layers]
        for number, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False), 1):
            self.add_module(f"fc{number}", nn.Linear(inputs, outputs))
            self.add_module(f"squash{number}", ScaledTanh())
        self.add_module("output", nn.Linear(sizes[-1], num_classes))
        paper_init(*(layer for layer in self if isinstance(layer, nn.Linear)))


class LeNet1(nn.Module):
    """(B, 1, 28, 28) -> (B, num_classes); 2,578 parameters for ten classes."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.C1 = nn.Conv2d(1, 4, 5)
        self.S2 = Subsampling(4)
        self.C3 = TableConv2d(4, LENET1_TABLE, 5, paper_bound)
        self.S4 = Subsampling(12)
        self.output = nn.Linear(12 * 4 * 4, num_classes)
        self.squash = ScaledTanh()
        paper_init(self.C1, self.output)

    def forward(self, images: Tensor) -> Tensor:
        x = self.squash(self.C1(images))  # (B, 4, 24, 24)
        x = self.squash(self.S2(x))  # (B, 4, 12, 12)
        x = self.squash(self.C3(x))  # (B, 12, 8, 8)
        x = self.squash(self.S4(x))  # (B, 12, 4, 4)
        return self.output(x.flatten(1))  # (B, num_classes)


class LeNet4(nn.Module):
    """(B, 1, 32, 32) -> (B, num_classes); for ten classes 50,698 parameters, 262,306 connections.

    The paper states 260,000 connections, as here, and 17,000 parameters, which does not fit its
    description: the fully connected layer of 120 units alone has 48,120.
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.C1 = nn.Conv2d(1, 4, 5)
        self.S2 = Subsampling(8)
        self.C3 = TableConv2d(8, LENET4_TABLE, 5, paper_bound)
        self.S4 = Subsampling(16)
        self.F5 = nn.Linear(16 * 5 * 5, 120)
        self.output = nn.Linear(120, num_classes)
        self.squash = ScaledTanh()
        paper_init(self.C1, self.F5, self.output)

    def forward(self, images: Tensor) -> Tensor:
        x = self.squash(self.C1(images))  # (B, 4, 28, 28)
        x = self.squash(self.S2(x.repeat_interleave(2, 1)))  # (B, 8, 14, 14), a pair for each map
        x = self.squash(self.C3(x))  # (B, 16, 10, 10)
        x = self.squash(self.S4(x))  # (B, 16, 5, 5)
        x = self.squash(self.F5(x.flatten(1)))  # (B, 120)
        return self.output(x)  # (B, num_classes)

"""The other nets of Fig. 9 compared with the paper's counts and with torch's layers."""

import pytest
import torch
from torch import nn

from classic_cnns.model.figure_9 import LENET1_TABLE, LENET4_TABLE, MLP, LeNet1, LeNet4
from classic_cnns.model.lenet5 import LeNet5
from classic_cnns.report.summary import layers


def count(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


@pytest.mark.fact(
    "LeNet-1 has about 2,600 weights: 2,578 with the table of 1989 and trainable subsampling",
    source="LeCun 1998, section III.C, Fig. 9",
    code="model/figure_9.py:LeNet1",
)
def test_lenet_1_has_the_papers_number_of_weights():
    assert count(LeNet1(num_classes=10)) == 2578
    assert sum(map(len, LENET1_TABLE)) == 20
    assert LeNet1(num_classes=7)(torch.zeros(3, 1, 28, 28)).shape == (3, 7)


@pytest.mark.fact(
    "LeNet-4 has about 260,000 connections: 262,306, but 50,698 parameters, not 17,000",
    source="LeCun 1998, section III.C, Fig. 9",
    code="model/figure_9.py:LeNet4",
)
def test_lenet_4_has_the_papers_connections():
    net = LeNet4(num_classes=10)
    rows = layers(net, torch.zeros(1, 1, 32, 32))
    assert [(row.name, row.parameters, row.connections) for row in rows] == [
        ("C1", 4 * 26, 4 * 26 * 28**2),
        ("S2", 8 * 2, 8 * 5 * 14**2),
        ("C3", 16 * (3 * 25 + 1), 16 * (3 * 25 + 1) * 10**2),
        ("S4", 16 * 2, 16 * 5 * 5**2),
        ("F5", 120 * 401, 120 * 401),
        ("output", 10 * 121, 10 * 121),
    ]
    assert sum(row.connections for row in rows) == 262306 and count(net) == 50698


def test_maps_of_lenet_4_are_connected_in_pairs_and_triples():
    assert len(set(LENET4_TABLE)) == 16 and all(len(set(row)) == 3 for row in LENET4_TABLE)
    assert all(sum(i in row for row in LENET4_TABLE) == 6 for i in range(8))  # used equally often
    net, images = LeNet4(num_classes=10).double(), torch.randn(2, 1, 32, 32).double()

    def squash(a):
        return 1.7159 * torch.tanh(2 / 3 * a)

    maps = squash(net.C1(images))
    pairs = torch.stack([4 * nn.functional.avg_pool2d(maps, 2)[:, i // 2] for i in range(8)], 1)
    halves = squash(net.S2.coefficient * pairs + net.S2.bias)
    x = torch.cat([nn.functional.conv2d(halves[:, row], net.C3.dense_weight()[i : i + 1, row])
                   for i, row in enumerate(map(list, LENET4_TABLE))], 1)  # fmt: skip
    x = squash(x + net.C3.bias[:, None, None])
    x = squash(net.S4.coefficient * 4 * nn.functional.avg_pool2d(x, 2) + net.S4.bias)
    want = net.output(squash(net.F5(x.flatten(1))))
    torch.testing.assert_close(net(images), want)


@pytest.mark.fact(
    "The fully connected nets have 28 x 28 inputs and 300, or 300 and 100, hidden units",
    source="LeCun 1998, section III.C, Fig. 9",
    code="model/figure_9.py:MLP",
)
@pytest.mark.parametrize(("hidden", "weights"), [([], 7850), ([300], 238510), ([300, 100], 266610)])
def test_fully_connected_nets_equal_the_formula(hidden, weights):
    net = MLP(num_classes=10, side=28, hidden_layers=hidden)
    assert count(net) == weights
    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    x = images.flatten(1).double()
    layers = [layer.double() for layer in net if isinstance(layer, nn.Linear)]
    for layer in layers[:-1]:
        x = 1.7159 * torch.tanh(2 / 3 * (x @ layer.weight.T + layer.bias))
    want = x @ layers[-1].weight.T + layers[-1].bias
    torch.testing.assert_close(net(images.double()), want)


@pytest.mark.fact(
    "The bitmaps are initially fixed; they can be learned too",
    source="LeCun 1998, sections II.B and II.C",
    code="model/lenet5.py:EuclideanRBF",
)
def test_learned_bitmaps_start_as_the_fixed_ones_and_have_a_gradient():
    torch.manual_seed(0)
    fixed = LeNet5()
    torch.manual_seed(0)
    learned = LeNet5(rbf="learned")
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(fixed(images), learned(images))
    assert count(learned) == count(fixed) + 840
    learned(images).sum().backward()
    assert learned.output.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "pool"), [("average", nn.functional.avg_pool2d), ("max", nn.functional.max_pool2d)]
)
def test_pooling_can_replace_subsampling_and_has_no_weights(kind, pool):
    net = LeNet5(subsampling=kind)
    assert count(net) == 60000 - 12 - 32
    maps = torch.randn(2, 6, 28, 28)
    assert torch.equal(net.S2(maps), pool(maps, 2))

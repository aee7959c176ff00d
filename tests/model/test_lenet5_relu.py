import pytest
import torch

from classic_cnns.model.lenet5 import C3_TABLE
from classic_cnns.model.lenet5_relu import LeNet5ReLU, SquaredErrorOneHot
from tests import reference
from tests.model.tools import configured, count, counts, norm_batches, shapes


def net(**options: str) -> LeNet5ReLU:
    return configured("lenet5_relu", channels=1, **options)


@pytest.mark.fact(
    "With ReLU and a linear output LeNet-5 has 60,806 parameters, and 61,706 if each C3 map uses "
    "all six",
    source="tutorial on LeNet-5",
    code="model/lenet5_relu.py:LeNet5ReLU",
)
@pytest.mark.parametrize(
    ("c3", "c3_count", "total"), [("table", 1516, 60_806), ("full", 2416, 61_706)]
)
def test_parameters_per_layer(c3: str, c3_count: int, total: int) -> None:
    lenet = net(c3=c3)
    assert counts(lenet) == {
        "C1": 156,
        "C3": c3_count,
        "C5": 48_120,
        "F6": 10_164,
        "output": 850,
    }
    assert count(lenet) == total


def test_shapes() -> None:
    seen = shapes(net(), torch.randn(1, 1, 32, 32))
    layers = {n: shape for n, shape in seen.items() if "norm" not in n and n != "activation"}
    assert layers == {
        "C1": (6, 28, 28),
        "S2": (6, 14, 14),
        "C3": (16, 10, 10),
        "S4": (16, 5, 5),
        "C5": (120, 1, 1),
        "F6": (84,),
        "output": (10,),
    }


@pytest.mark.fact(
    "C3 has sixteen filters, as in section II.B",
    source="LeCun 1998, section II.B",
    code="model/lenet5_relu.py:LeNet5ReLU",
)
def test_c3_with_the_table_has_sixteen_filters() -> None:
    c3 = net(c3="table").C3
    assert c3.weight.shape == (60, 5, 5) and c3.bias.shape == (16,)
    maps = torch.randn(2, 6, 7, 7)
    expected = reference.table_conv2d(maps, C3_TABLE, c3.weight, c3.bias)
    torch.testing.assert_close(c3(maps), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.fact(
    "The tutorial uses four filters for sixteen maps: 429 parameters, not the 1,516 of its text",
    source="tutorial on LeNet-5",
    code="model/lenet5_relu.py:LeNet5ReLU",
)
def test_the_tutorials_c3_has_429_parameters() -> None:
    """One convolution for three input maps, two for four and one for six."""
    four = [torch.nn.Conv2d(maps, 1, 5) for maps in (3, 4, 4, 6)]
    ours = net(c3="table")
    assert sum(map(count, four)) == 76 + 101 + 101 + 151 == 429
    assert count(ours) - count(ours.C3) + 429 == 59_719


def test_c3_with_the_table_is_initialized_like_torchs_convolutions() -> None:
    c3 = net(c3="table").C3
    kernels = iter(c3.weight)
    for maps, bias in zip(C3_TABLE, c3.bias, strict=True):
        weights = torch.stack([next(kernels) for _ in maps])
        bound = weights.numel() ** -0.5
        assert 0.9 * bound < weights.abs().max() <= bound
        assert bias.abs() <= bound


@pytest.mark.parametrize("pool", ["average", "max"])
@pytest.mark.parametrize("c3", ["table", "full"])
def test_forward_equals_the_loops(pool: str, c3: str) -> None:
    lenet = net(pool=pool, c3=c3)
    images = torch.randn(1, 1, 32, 32)
    x = reference.conv2d(images, lenet.C1.weight, lenet.C1.bias, stride=1, padding=0).clamp(min=0)
    x = reference.pool2d(x, size=2, stride=2, kind=pool, ceil=False)
    if c3 == "table":
        x = reference.table_conv2d(x, C3_TABLE, lenet.C3.weight, lenet.C3.bias)
    else:
        x = reference.conv2d(x, lenet.C3.weight, lenet.C3.bias, stride=1, padding=0)
    x = reference.pool2d(x.clamp(min=0), size=2, stride=2, kind=pool, ceil=False)
    x = reference.conv2d(x, lenet.C5.weight, lenet.C5.bias, stride=1, padding=0).clamp(min=0)
    x = (x.flatten(1) @ lenet.F6.weight.T + lenet.F6.bias).clamp(min=0)
    expected = x @ lenet.output.weight.T + lenet.output.bias
    torch.testing.assert_close(lenet(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("c3", ["table", "full"])
def test_our_batch_norm_equals_torchs(c3: str) -> None:
    ours, other = net(c3=c3, norm="batch"), net(c3=c3, norm="torch")
    other.load_state_dict(ours.state_dict())
    images = torch.randn(8, 1, 32, 32)
    torch.testing.assert_close(ours(images), other(images), rtol=1e-3, atol=1e-4)
    assert norm_batches(ours) == [1] * 4
    assert count(ours) == count(net(c3=c3)) + 2 * (6 + 16 + 120 + 84)


@pytest.mark.fact(
    "The tutorial's loss is the mean square over ten outputs; eq. 8 is a sum over 84 units",
    source="tutorial on LeNet-5",
    code="model/lenet5_relu.py:SquaredErrorOneHot",
)
def test_squared_error_of_one_hot_targets() -> None:
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 2.0]])
    # Targets (0, 1, 0) and (0, 0, 1): squares 1 + 1 + 0 + 0.25 + 0 + 1 over six outputs.
    loss = SquaredErrorOneHot()(scores, torch.tensor([1, 2]))
    assert loss.item() == pytest.approx(3.25 / 6)


def test_squared_error_gradient() -> None:
    scores = torch.randn(3, 10, dtype=torch.double, requires_grad=True)
    labels = torch.tensor([0, 9, 4])
    assert torch.autograd.gradcheck(lambda s: SquaredErrorOneHot()(s, labels), scores)

import pytest
import torch
from torch import nn

from classic_cnns.model.simple_cnn import SimpleCNN
from tests import reference
from tests.model.tools import configured, count, counts, norm_batches, shapes


def net(norm: str = "none", extra_convs: int = 0) -> SimpleCNN:
    return configured("simple_cnn", channels=1, norm=norm, extra_convs=extra_convs)


@pytest.mark.fact(
    "The generic net has 121,514 parameters; its linear layer has 64*7*7 inputs, not 32*7*7",
    source="tutorial on small CNNs",
    code="model/simple_cnn.py:SimpleCNN",
)
def test_parameters_per_layer() -> None:
    assert counts(net()) == {
        "conv1": 16 * (25 + 1),
        "conv2": 32 * (16 * 25 + 1) + 32 * (32 * 25 + 1),
        "conv3": 64 * (32 * 25 + 1),
        "out": 10 * (3136 + 1),
    }
    assert count(net()) == 121_514


def test_shapes() -> None:
    seen = shapes(net(), torch.randn(1, 1, 28, 28))
    assert seen == {
        "conv1": (16, 14, 14),
        "conv2": (32, 7, 7),
        "conv3": (64, 7, 7),
        "extra": (64, 7, 7),
        "out": (10,),
    }


@pytest.mark.parametrize("extra_convs", [1, 2])
def test_extra_convs(extra_convs: int) -> None:
    more = net(extra_convs=extra_convs)
    assert count(more) == 121_514 + extra_convs * 102_464
    assert [type(layer) for layer in more.extra if not isinstance(layer, nn.Identity)] == [
        nn.Conv2d,
        nn.ReLU,
    ] * extra_convs
    assert shapes(more, torch.randn(1, 1, 28, 28))["extra"] == (64, 7, 7)


def test_extra_convs_precede_the_linear_layer() -> None:
    plain, more = net(), net(extra_convs=1)
    more.load_state_dict(plain.state_dict(), strict=False)
    conv = more.extra[0]
    nn.init.dirac_(conv.weight)  # the identity, since ReLU has made its input positive
    nn.init.zeros_(conv.bias)
    images = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(more(images), plain(images))


def test_conv1_equals_the_loops() -> None:
    small = net()
    images = torch.randn(1, 1, 28, 28)
    conv = small.conv1[0]
    maps = reference.conv2d(images, conv.weight, conv.bias, stride=1, padding=2).clamp(min=0)
    expected = reference.pool2d(maps, size=2, stride=2, kind="max", ceil=False)
    torch.testing.assert_close(small.conv1(images), expected)


@pytest.mark.parametrize("norm", ["batch", "torch"])
def test_our_batch_norm_equals_torchs(norm: str) -> None:
    ours, other = net(norm=norm), net(norm="torch")
    other.load_state_dict(ours.state_dict())
    images = torch.randn(4, 1, 28, 28)
    torch.testing.assert_close(ours(images), other(images), rtol=1e-3, atol=1e-4)
    assert norm_batches(ours) == [1] * 4
    assert count(ours) == 121_514 + 2 * (16 + 32 + 32 + 64)

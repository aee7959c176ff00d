"""Variants of the nets that tutorials use: other activations, pools and batch normalisation."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classic_cnns.report import summary
from tests.recipes import recipe


def variant(words: str) -> tuple[nn.Module, Tensor]:
    """The net that the overrides `words` configure, and random images for it."""
    torch.manual_seed(0)
    made = recipe(words)
    return made.net, torch.randn(4, *made.shape)


@pytest.mark.parametrize("function", ["relu", "tanh", "sigmoid"])
def test_lenet5_relu_with_another_activation(function):
    net, images = variant(f"model=lenet5_relu model.net.activation={function}")
    f = getattr(torch, function)
    x = F.avg_pool2d(f(net.C1(images)), 2)
    x = F.avg_pool2d(f(net.C3(x)), 2)
    want = net.output(f(net.F6(f(net.C5(x)).flatten(1))))
    torch.testing.assert_close(net(images), want)


@pytest.mark.parametrize("pool", ["max", "average"])
def test_simple_cnn_with_another_pool_and_a_smaller_extra_convolution(pool):
    words = f"model=simple_cnn model.net.pool={pool} model.net.extra_convs=1"
    net, images = variant(f"{words} model.net.extra_kernel=3")
    assert sum(w.numel() for w in net.parameters()) == 121_514 + 64 * (64 * 9 + 1)
    pooled = {"max": F.max_pool2d, "average": F.avg_pool2d}[pool]
    x = pooled(F.relu(net.conv1[0](images)), 2)
    x = pooled(F.relu(net.conv2[3](F.relu(net.conv2[0](x)))), 2)
    x = F.relu(net.extra[0](F.relu(net.conv3[0](x))))
    torch.testing.assert_close(net(images), net.out(x.flatten(1)))


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_alexnet_with_another_pool(pooling):
    net, images = variant(f"model=alexnet_small model.net.pooling={pooling}")
    pooled = {"max": F.max_pool2d, "average": F.avg_pool2d}[pooling]
    maps = torch.randn(2, 32, 9, 9)
    assert torch.equal(net.pool1(maps), pooled(maps, 3, 2))
    assert net(images).shape == (4, 10)


@pytest.mark.parametrize(
    ("model", "layers"),
    [("lenet5", ["C1", "C3", "C5", "F6"]),
     ("alexnet_small", ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"])],
)  # fmt: skip
def test_our_batch_norm_and_torchs_give_the_same_gradients(model, layers):
    ours, images = variant(
        f"model={model} model.net.norm=batch model.net.dropout=0"
        if "alex" in model
        else f"model={model} model.net.norm=batch"
    )
    other, _ = variant(
        f"model={model} model.net.norm=torch model.net.dropout=0"
        if "alex" in model
        else f"model={model} model.net.norm=torch"
    )
    plain, _ = variant(f"model={model}")
    other.load_state_dict(ours.state_dict())
    grads = []
    for net in (ours.double(), other.double()):
        net(images.double()).square().sum().backward()
        grads.append({name: w.grad for name, w in net.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-7, atol=1e-9)
    added = {name for name, _ in ours.named_parameters()} - {n for n, _ in plain.named_parameters()}
    assert added == {f"{layer}_norm.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_the_summary_does_not_count_batch_norms_as_neurons():
    net, images = variant("model=lenet5 model.net.norm=batch")
    rows = {row.name: row.neurons for row in summary.layers(net, images)}
    assert rows["C1"] == 6 * 28 * 28 and rows["F6"] == 84 and rows["C1_norm"] == 0
    units = 4704 + 1176 + 1600 + 400 + 120 + 84 + 10
    assert f" {units:,} |" in summary.table(net, images).splitlines()[-1]

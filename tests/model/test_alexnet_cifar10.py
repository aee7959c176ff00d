import pytest
import torch
import torchvision
from torch import nn

from classic_cnns.model.alexnet_cifar10 import AlexNetCifar10
from tests.model.tools import configured, count, counts, norm_batches, shapes


@pytest.fixture(scope="module")
def net() -> AlexNetCifar10:
    return configured("alexnet_cifar10", channels=3).eval()


@pytest.mark.fact(
    "The tutorial's net has 44,428,106 parameters; its fc7 has 1,024 units instead of 4,096",
    source="tutorial on AlexNet for CIFAR-10",
    code="model/alexnet_cifar10.py:AlexNetCifar10",
)
def test_parameters_per_layer(net: AlexNetCifar10) -> None:
    assert counts(net) == {
        "conv1": 64 * (3 * 121 + 1),
        "conv2": 192 * (64 * 25 + 1),
        "conv3": 384 * (192 * 9 + 1),
        "conv4": 256 * (384 * 9 + 1),
        "conv5": 256 * (256 * 9 + 1),
        "fc6": 4096 * (9216 + 1),
        "fc7": 1024 * (4096 + 1),
        "fc8": 10 * (1024 + 1),
    }
    assert count(net) == 44_428_106


def test_shapes(net: AlexNetCifar10) -> None:
    seen = shapes(net, torch.randn(1, 3, 96, 96))
    assert {name: shape for name, shape in seen.items() if "norm" not in name} == {
        "conv1": (64, 23, 23),
        "conv2": (192, 11, 11),
        "conv3": (384, 5, 5),
        "conv4": (256, 5, 5),
        "conv5": (256, 5, 5),
        "pool": (256, 2, 2),
        "resize": (256, 6, 6),
        "dropout": (4096,),
        "fc6": (4096,),
        "fc7": (1024,),
        "fc8": (10,),
    }


@pytest.mark.fact(
    "The tutorial's net is torchvision's, 64-192-384-256-256 in one tower, not that of 2012",
    source="tutorial on AlexNet for CIFAR-10",
    code="model/alexnet_cifar10.py:AlexNetCifar10",
)
def test_equals_torchvisions_alexnet_with_a_narrower_fc7(net: AlexNetCifar10) -> None:
    with torch.device("meta"):
        other = torchvision.models.alexnet(num_classes=10, dropout=0.5)
        other.classifier[4] = nn.Linear(4096, 1024)
        other.classifier[6] = nn.Linear(1024, 10)
    keys = other.state_dict().keys()
    other.load_state_dict(
        dict(zip(keys, net.state_dict().values(), strict=True)), strict=True, assign=True
    )
    images = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(net(images), other.eval()(images))


@pytest.mark.fact(
    "The 9,216 inputs of fc6 are 1,024 numbers, each repeated nine times",
    source="tutorial on AlexNet for CIFAR-10",
    code="model/alexnet_cifar10.py:AlexNetCifar10.forward",
)
def test_each_input_of_fc6_is_repeated_nine_times(net: AlexNetCifar10) -> None:
    inputs = []
    hook = net.fc6.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    net(torch.randn(1, 3, 96, 96))
    hook.remove()
    maps = inputs[0].view(256, 2, 3, 2, 3)  # each of 2x2 values is repeated 3x3 times
    assert torch.equal(maps, maps[:, :, :1, :, :1].expand_as(maps))


@pytest.mark.fact(
    "The tutorial's net drops inputs of fc6 and fc7; the net of 2012 drops their outputs",
    source="tutorial on AlexNet for CIFAR-10",
    code="model/alexnet_cifar10.py:AlexNetCifar10.forward",
)
def test_dropout_precedes_fc6_and_fc7(net: AlexNetCifar10) -> None:
    called = []
    hooks = [
        layer.register_forward_hook(lambda _, __, ___, name=name: called.append(name))
        for name, layer in net.named_children()
        if name in ("dropout", "fc6", "fc7", "fc8")
    ]
    net(torch.randn(1, 3, 96, 96))
    for hook in hooks:
        hook.remove()
    assert called == ["dropout", "fc6", "dropout", "fc7", "fc8"]
    assert net.dropout.p == 0.5


def test_our_batch_norm_equals_torchs() -> None:
    ours = configured("alexnet_cifar10", channels=3, norm="batch")
    with torch.device("meta"):
        other = configured("alexnet_cifar10", channels=3, norm="torch")
    other.load_state_dict(ours.state_dict(), assign=True)
    images = torch.randn(2, 3, 96, 96)
    ours(images)
    assert norm_batches(ours) == [1] * 7
    assert count(ours) == 44_428_106 + 2 * (64 + 192 + 384 + 256 + 256 + 4096 + 1024)
    other.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(images), other.eval()(images), rtol=1e-3, atol=1e-4)

"""AlexNet compared with the paper's numbers and with two separate towers."""

import math
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from classic_cnns.model.alexnet import AlexNet
from classic_cnns.model.local_response_norm import LocalResponseNorm
from tests import reference
from tests.model.tools import model_config

PAPER: dict[str, Any] = {
    "num_classes": 1000,
    "in_channels": 3,
    "image_size": 224,
    "channels": [96, 256, 384, 384, 256],
    "hidden": 4096,
    "conv1_kernel": 11,
    "conv1_stride": 4,
    "towers": 2,
    "activation": "relu",
    "lrn": True,
    "lrn_divide_by_size": False,
    "pool": "overlapping",
    "pooling": "max",
    "norm": "none",
    "conv4": True,
    "dropout": 0.5,
    "weight_std": 0.01,
}
SMALL = PAPER | {
    "num_classes": 10,
    "image_size": 32,
    "channels": [8, 12, 16, 16, 8],
    "hidden": 20,
    "conv1_kernel": 5,
    "conv1_stride": 1,
}
# layer: parameters, neurons, multiplications per image (Fig. 2 and section 3.5, recomputed)
LAYERS = {
    "conv1": (34_944, 290_400, 105_415_200),
    "conv2": (307_456, 186_624, 223_948_800),
    "conv3": (885_120, 64_896, 149_520_384),
    "conv4": (663_936, 64_896, 112_140_288),
    "conv5": (442_624, 43_264, 74_760_192),
    "fc6": (37_752_832, 4096, 37_748_736),
    "fc7": (16_781_312, 4096, 16_777_216),
    "fc8": (4_097_000, 1000, 4_096_000),
}


@pytest.fixture(scope="module")
def net() -> AlexNet:
    torch.manual_seed(0)
    return AlexNet(**PAPER).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Images (2, 3, 224, 224) with about the standard deviation of pixels less their mean."""
    return 60 * torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def maps_of(net: AlexNet, images: Tensor) -> dict[str, Tensor]:
    """Run the net and return the output of every layer under its name."""
    maps: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: maps.__setitem__(name, out))
        for name, layer in net.named_children()
    ]
    net(images)
    for hook in hooks:
        hook.remove()
    return maps


@pytest.fixture(scope="module")
def maps(net: AlexNet, images: Tensor) -> dict[str, Tensor]:
    return maps_of(net, images)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def on_meta(**changes: Any) -> AlexNet:
    """The paper's net with changes on the meta device, only to count its parameters."""
    with torch.device("meta"):
        return AlexNet(**PAPER | changes)


@pytest.mark.fact(
    "Each layer has the parameters, neurons and multiplications that follow from its description",
    source="Krizhevsky 2012, section 3.5 and Fig. 2",
    code="model/alexnet.py:AlexNet",
)
@pytest.mark.parametrize("name", LAYERS)
def test_parameters_neurons_and_multiplications_per_layer(
    net: AlexNet, maps: dict[str, Tensor], name: str
) -> None:
    layer, neurons = getattr(net, name), maps[name][0].numel()
    fan_in = layer.weight[0].numel()
    assert (parameters(layer), neurons, neurons * fan_in) == LAYERS[name]


@pytest.mark.fact(
    "AlexNet has 60,965,224 parameters: 60 million",
    source="Krizhevsky 2012, abstract",
    code="model/alexnet.py:AlexNet",
)
@pytest.mark.fact(
    "It has 659,272 neurons. Fig. 2 prints 253,440 instead of 290,400 for conv1, and so "
    "622,312 in total",
    source="Krizhevsky 2012, Fig. 2",
    code="model/alexnet.py:AlexNet",
)
@pytest.mark.fact(
    "The tutorial's 60,964,224 parameters do not include the 1,000 biases of fc8",
    source="tutorial on AlexNet's layers",
    code="model/alexnet.py:AlexNet",
)
def test_totals(net: AlexNet, maps: dict[str, Tensor]) -> None:
    assert parameters(net) == 60_965_224 == 60_964_224 + 1000
    neurons = sum(maps[name][0].numel() for name in LAYERS)
    assert neurons == 659_272
    assert neurons - 55 * 55 * 96 + 253_440 == 622_312  # with Fig. 2's 55 x 48 x 96 for conv1
    assert sum(multiplications for _, _, multiplications in LAYERS.values()) == 724_406_816
    assert [key for key in net.state_dict() if key.endswith("weight")] == [
        f"{name}.weight" for name in LAYERS
    ]


@pytest.mark.fact(
    "With one tower it has 62,378,344 parameters; the footnote's net for one GPU has 59,798,312",
    source="Krizhevsky 2012, section 3.2",
    code="model/alexnet.py:AlexNet",
)
@pytest.mark.parametrize(
    "changes, count",
    [
        ({"num_classes": 10}, 56_909_194),
        ({"towers": 1}, 62_378_344),
        ({"conv4": False}, 60_965_224 - 663_936),
        ({"towers": 1, "channels": [48, 128, 192, 192, 256]}, 59_798_312),  # section 3.2, footnote
        ({"image_size": 227, "pool": "non_overlapping"}, 60_965_224),  # "equivalent dimensions"
    ],
)
def test_parameters_of_variants(changes: dict[str, Any], count: int) -> None:
    assert parameters(on_meta(**changes)) == count


@pytest.mark.fact(
    "The maps are 55, 27 and 13 pixels wide, and 6 after the last pooling",
    source="Krizhevsky 2012, section 3.5",
    code="model/alexnet.py:AlexNet",
)
def test_map_sizes(maps: dict[str, Tensor]) -> None:
    shapes = {name: tuple(out.shape[1:]) for name, out in maps.items()}
    assert shapes["conv1"] == shapes["norm1"] == (96, 55, 55)
    assert shapes["pool1"] == (96, 27, 27)
    assert shapes["conv2"] == shapes["norm2"] == (256, 27, 27)
    assert shapes["pool2"] == (256, 13, 13)
    assert shapes["conv3"] == shapes["conv4"] == (384, 13, 13)
    assert shapes["conv5"] == (256, 13, 13)
    assert shapes["pool5"] == (256, 6, 6)


@pytest.mark.fact(
    "224 is not a misprint for 227: cuda-convnet rounds the number of windows up, and the last "
    "one extends over the edge",
    source="cuda-convnet, layer.py",
    code="model/alexnet.py:AlexNet._overhang",
)
def test_224_equals_227_with_zeros_on_the_right_and_below(
    net: AlexNet, maps: dict[str, Tensor], images: Tensor
) -> None:
    padded = torch.zeros(2, 3, 227, 227)
    padded[:, :, :224, :224] = images
    larger = maps_of(net, padded)
    assert torch.equal(larger["conv1"], maps["conv1"])
    assert torch.equal(larger["fc8"], maps["fc8"])
    padded[:, :, 226, 226] = 1000  # only the last window contains the last pixel
    changes = (maps_of(net, padded)["conv1"] != maps["conv1"]).any(0).any(0)
    assert changes.nonzero().tolist() == [[54, 54]]


@pytest.mark.fact(
    "ReLU follows each layer, then normalisation in conv1 and conv2, then max-pooling in these "
    "and conv5",
    source="Krizhevsky 2012, section 3.5 and Fig. 2",
    code="model/alexnet.py:AlexNet.forward",
)
def test_equals_two_separate_towers(net: AlexNet, maps: dict[str, Tensor], images: Tensor) -> None:
    """The reference uses ungrouped convolutions, and loops for normalisation and pooling."""
    padded = torch.zeros(2, 3, 227, 227)
    padded[:, :, :224, :224] = images
    with torch.no_grad():
        truth = reference.alexnet_two_towers(net.state_dict(), padded)
    for name, want in truth.items():
        error = (maps[name] - want).abs().max() / want.abs().max()
        assert error < 1e-5, name


@pytest.mark.fact(
    "conv2, conv4 and conv5 see only their own tower, conv3 and the fully-connected layers both",
    source="Krizhevsky 2012, section 3.2",
    code="model/alexnet.py:AlexNet.crossings",
)
def test_which_layers_see_both_towers(images: Tensor) -> None:
    """Change tower B of one layer and find the layers and towers that change."""
    torch.manual_seed(0)
    net = AlexNet(**SMALL).eval()
    x = images[:, :, :32, :32]

    def changes(layer: nn.Module) -> dict[str, list[bool]]:
        """For each layer whether towers A and B change if tower B of `layer` changes."""
        before = maps_of(net, x)
        rows = len(layer.weight) // 2
        saved = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight[rows:] *= 1.5
        after = maps_of(net, x)
        with torch.no_grad():
            layer.weight.copy_(saved)
        return {
            name: [
                not torch.equal(a, b)
                for a, b in zip(after[name].chunk(2, 1), before[name].chunk(2, 1), strict=True)
            ]
            for name in before
        }

    only_b, both = [False, True], [True, True]
    changed = changes(net.conv1)
    for name in ("conv1", "norm1", "pool1", "conv2", "norm2", "pool2"):
        assert changed[name] == only_b, name
    for name in ("conv3", "conv4", "conv5", "pool5", "fc6", "fc7", "fc8"):
        assert changed[name] == both, name
    changed = changes(net.conv3)
    for name in ("conv3", "conv4", "conv5", "pool5"):
        assert changed[name] == only_b, name
    assert changed["fc6"] == changed["fc7"] == both
    assert changes(net.fc6)["fc6"] == only_b
    assert changes(net.fc6)["fc7"] == both


def test_crossings_are_the_layers_that_see_both_towers(net: AlexNet) -> None:
    """The number of input channels of its kernels shows whether a layer sees both towers."""
    widths = {"conv2": 96, "conv3": 256, "conv4": 384, "conv5": 384}
    widths |= {"fc6": 9216, "fc7": 4096, "fc8": 4096}
    sees_both = [
        name for name, width in widths.items() if getattr(net, name).weight.shape[1] == width
    ]
    assert tuple(sees_both) == net.crossings


@pytest.mark.fact(
    "Weights start as N(0, 0.01), biases at 1 in conv2, conv4, conv5, fc6, fc7 and at 0 elsewhere",
    source="Krizhevsky 2012, section 5",
    code="model/alexnet.py:AlexNet",
)
def test_initial_weights(net: AlexNet) -> None:
    for name in LAYERS:
        layer, count = getattr(net, name), getattr(net, name).weight.numel()
        weight = layer.weight.detach().double()
        assert abs(weight.mean()) < 5 * 0.01 / math.sqrt(count), name
        assert weight.std().item() == pytest.approx(0.01, rel=5 / math.sqrt(2 * count)), name
        kurtosis = (weight**4).mean().item() / (weight**2).mean().item() ** 2
        assert kurtosis == pytest.approx(3, abs=5 * math.sqrt(24 / count)), name  # normal
        want = 1 if name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0
        assert (layer.bias == want).all(), name


def test_the_seed_decides_the_weights() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(AlexNet(**SMALL).parameters())

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


@pytest.mark.fact(
    "Half of the outputs of fc6 and fc7 are dropped in training, none in the test",
    source="Krizhevsky 2012, section 4.2",
    code="model/alexnet.py:AlexNet.forward",
)
def test_dropout_follows_fc6_and_fc7() -> None:
    torch.manual_seed(0)
    net = AlexNet(**SMALL | {"hidden": 2000}).train()
    maps = maps_of(net, torch.randn(4, 3, 32, 32))
    for number in (6, 7):
        before, after = maps[f"fc{number}"].relu(), maps[f"drop{number}"]
        kept = after != 0
        assert kept[before > 0].float().mean().item() == pytest.approx(0.5, abs=0.05)
        torch.testing.assert_close(after[kept], 2 * before[kept])
    assert torch.equal(net.eval().drop6(maps["fc6"]), maps["fc6"])


@pytest.mark.fact(
    "The net can be trained with tanh units for the comparison with ReLU",
    source="Krizhevsky 2012, section 3.1",
    code="model/alexnet.py:ACTIVATIONS",
)
def test_activation_switch() -> None:
    torch.manual_seed(0)
    net = AlexNet(**SMALL | {"activation": "tanh", "lrn": False, "pool": "non_overlapping"}).eval()
    maps = maps_of(net, 5 * torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(maps["norm1"], maps["conv1"].tanh())
    torch.testing.assert_close(maps["drop7"], maps["fc7"].tanh())


@pytest.mark.fact(
    "Pooling overlaps with z = 3 and s = 2; it is compared with z = 2",
    source="Krizhevsky 2012, section 3.4",
    code="model/alexnet.py:WINDOWS",
)
@pytest.mark.parametrize("pool, window", [("overlapping", 3), ("non_overlapping", 2)])
def test_pool_switch(pool: str, window: int) -> None:
    net = AlexNet(**SMALL | {"pool": pool}).eval()
    maps = maps_of(net, torch.randn(2, 3, 32, 32))
    for number in ("1", "2"):
        want = reference.pool2d(maps[f"norm{number}"], window, stride=2, kind="max", ceil=False)
        assert torch.equal(maps[f"pool{number}"], want)


@pytest.mark.fact(
    "Normalisation has k = 2, n = 5, alpha = 1e-4, beta = 0.75, separately in each tower",
    source="Krizhevsky 2012, section 3.3",
    code="model/alexnet.py:AlexNet",
)
@pytest.mark.parametrize("divide_by_size", [False, True])
@pytest.mark.parametrize("towers", [1, 2])
def test_lrn_switches(divide_by_size: bool, towers: int) -> None:
    net = AlexNet(**SMALL | {"lrn_divide_by_size": divide_by_size, "towers": towers}).eval()
    maps = maps_of(net, 1000 * torch.randn(2, 3, 32, 32))
    truth = nn.LocalResponseNorm(5, alpha=1e-4 * (1 if divide_by_size else 5), beta=0.75, k=2)
    for number in ("1", "2"):
        halves = maps[f"conv{number}"].relu().chunk(towers, 1)
        want = torch.cat([truth(half) for half in halves], 1)
        torch.testing.assert_close(maps[f"norm{number}"], want, rtol=1e-5, atol=0)
    plain = AlexNet(**SMALL | {"lrn": False})
    assert not any(isinstance(layer, LocalResponseNorm) for layer in plain.modules())


def test_one_tower_has_no_groups() -> None:
    net = AlexNet(**SMALL | {"towers": 1})
    assert [getattr(net, f"conv{i}").groups for i in range(1, 6)] == [1] * 5


def test_overfits_eight_images() -> None:
    torch.manual_seed(0)
    net = AlexNet(**SMALL | {"dropout": 0.0, "weight_std": 0.1})
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    assert nn.functional.cross_entropy(net(images), labels) < 0.05
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_config_is_the_net_of_the_paper() -> None:
    config = model_config("alexnet", channels=3)
    net = OmegaConf.to_container(config, resolve=True)["net"] | {"num_classes": 1000}
    assert net.pop("_target_").endswith(".AlexNet")
    assert net == PAPER


@pytest.mark.fact(
    "The authors also removed middle layers; the next layer then has the inputs of the removed one",
    source="Krizhevsky 2012, section 7",
    code="model/alexnet.py:AlexNet",
)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_without_conv4_its_inputs_are_passed_on(norm: str) -> None:
    without = AlexNet(**SMALL | {"conv4": False, "norm": norm}).eval()
    whole = AlexNet(**SMALL | {"norm": norm}).eval()
    whole.load_state_dict(without.state_dict(), strict=False)
    nn.init.dirac_(whole.conv4.weight, groups=2)  # each map is copied, and the ReLU keeps it
    nn.init.zeros_(whole.conv4.bias)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(without(images), whole(images), rtol=1e-4, atol=1e-5)


def test_images_too_small_for_the_pools_are_refused() -> None:
    with pytest.raises(ValueError, match="^model.input.size=32: leaves nothing after pool5"):
        on_meta(image_size=32)

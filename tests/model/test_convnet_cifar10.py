import pytest
import torch
from torch import nn

from classic_cnns.model.convnet_cifar10 import (
    LAYERS,
    ConvNetCifar10,
    LocallyConnected2d,
    SameMapNorm,
)
from tests import reference
from tests.model.tools import configured, count, counts, model_config, norm_batches, shapes

SIZES = {"80sec": 32, "18pct": 32, "13pct": 24, "11pct_first": 24, "11pct": 24}


def config_name(variant: str) -> str:
    return "convnet_cifar10" if variant == "80sec" else f"convnet_cifar10_{variant}"


def net(variant: str, **options) -> ConvNetCifar10:
    return configured(config_name(variant), channels=3, **options)


def lines(variant: str) -> dict[str, dict]:
    """The lines of the variant's config by name, in order."""
    layers = [dict(line) for line in model_config(config_name(variant), channels=3).net.layers]
    return {line["name"]: line for line in layers}


def images(variant: str, batch: int = 1) -> torch.Tensor:
    return 60 * torch.randn(batch, 3, SIZES[variant], SIZES[variant])  # about 0..255 less the mean


def local_connections(maps: int, channels: int, filters: int) -> int:
    return maps * maps * filters * (9 * channels + 1)


COUNTS = {
    "80sec": {"conv1": 2_432, "conv2": 25_632, "conv3": 51_264, "fc64": 65_600, "fc10": 650},
    "18pct": {"conv1": 2_432, "conv2": 25_632, "conv3": 51_264, "fc10": 10_250},
    "13pct": {
        "conv1": 4_864,
        "conv2": 102_464,
        "local3": local_connections(6, 64, 32),
        "local4": local_connections(6, 32, 32),
        "fc10": 11_530,
    },
    "11pct": {
        "conv1": 4_864,
        "conv2": 102_464,
        "local3": local_connections(6, 64, 64),
        "local4": local_connections(6, 64, 32),
        "fc10": 11_530,
    },
}
COUNTS["11pct_first"] = COUNTS["13pct"]
TOTALS = {
    "80sec": 145_578,
    "18pct": 89_578,
    "13pct": 1_116_490,
    "11pct_first": 1_116_490,
    "11pct": 2_112_970,
}


@pytest.mark.fact(
    "The nets have 145,578 (80sec), 89,578 (18pct), 1,116,490 (13pct) and 2,112,970 (11pct) "
    "parameters",
    source="cuda-convnet, example-layers",
    code="model/convnet_cifar10.py:ConvNetCifar10",
)
@pytest.mark.parametrize("variant", SIZES)
def test_parameters_per_layer(variant: str) -> None:
    assert counts(net(variant)) == COUNTS[variant]
    assert count(net(variant)) == TOTALS[variant]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [("80sec", 12_354_176), ("18pct", 12_298_240), ("13pct", 18_517_248), ("11pct", 19_512_576)],
)
def test_multiplications_per_image(variant: str, expected: int) -> None:
    found = []

    def count_multiplications(layer: nn.Module, _, out: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            found.append(out[0, 0].numel() * layer.weight.numel())
        elif isinstance(layer, LocallyConnected2d | nn.Linear):
            found.append(layer.weight.numel())

    convnet = net(variant)
    for layer in convnet:
        layer.register_forward_hook(count_multiplications)
    convnet(images(variant))
    assert sum(found) == expected


SHAPES = {
    "80sec": [(32, 32, 32), (32, 16, 16), (32, 16, 16), (32, 8, 8), (64, 8, 8), (64, 4, 4), (64,)],
    "18pct": [(32, 32, 32), (32, 16, 16), (32, 16, 16), (32, 8, 8), (64, 8, 8), (64, 4, 4)],
    "13pct": [(64, 24, 24), (64, 12, 12), (64, 12, 12), (64, 6, 6), (32, 6, 6), (32, 6, 6)],
    "11pct": [(64, 24, 24), (64, 12, 12), (64, 12, 12), (64, 6, 6), (64, 6, 6), (32, 6, 6)],
}
SHAPES["11pct_first"] = SHAPES["13pct"]


@pytest.mark.fact(
    "24x24 crops give maps of 24, 12 and 6 pixels, 32x32 images maps of 32, 16, 8 and 4",
    source="cuda-convnet, example-layers",
    code="model/convnet_cifar10.py:ConvNetCifar10",
)
@pytest.mark.parametrize("variant", SIZES)
def test_shapes(variant: str) -> None:
    seen = shapes(net(variant), images(variant))
    layers = ("conv", "pool", "local", "fc64")
    layer_names = [name for name in seen if name.startswith(layers) and not name.endswith("_norm")]
    assert [seen[name] for name in layer_names] == SHAPES[variant]
    assert seen["fc10"] == (10,)


@pytest.mark.fact(
    "In 11pct the first normalisation follows its pooling and the second one precedes it",
    source="cuda-convnet, example-layers",
    code="conf/model/convnet_cifar10_11pct.yaml:net",
)
def test_order_of_pools_and_norms() -> None:
    def order(variant: str) -> list[str]:
        wanted = ("conv", "pool", "rnorm")
        names = dict(net(variant).named_children())
        return [name for name in names if name.startswith(wanted) and not name.endswith("_norm")]

    assert order("13pct") == ["conv1", "pool1", "conv2", "pool2"]
    assert order("11pct_first") == ["conv1", "rnorm1", "pool1", "conv2", "rnorm2", "pool2"]
    assert order("11pct") == ["conv1", "pool1", "rnorm1", "conv2", "rnorm2", "pool2"]
    assert order("18pct")[:6] == ["conv1", "pool1", "rnorm1", "conv2", "pool2", "rnorm2"]


@pytest.mark.fact(
    "13 % without and 11 % with normalisation: the first 11pct is 13pct plus normalisation",
    source="Krizhevsky 2012, section 3.3",
    code="conf/model/convnet_cifar10_11pct_first.yaml:net",
)
def test_the_first_11pct_is_13pct_plus_normalisation() -> None:
    plain, normed = lines("13pct"), lines("11pct_first")
    assert normed.keys() - plain.keys() == {"rnorm1", "rnorm2"}
    assert [line for line in normed.values() if "rnorm" not in line["name"]] == [*plain.values()]


@pytest.mark.fact(
    "Weights start as N(0, initW) of each layer, 0.0001 in conv1; biases start at 0",
    source="cuda-convnet, example-layers",
    code="model/convnet_cifar10.py:ConvNetCifar10",
)
@pytest.mark.parametrize("variant", SIZES)
def test_initial_weights(variant: str) -> None:
    convnet = net(variant)
    stds = {name: x["init_std"] for name, x in lines(variant).items() if "init_std" in x}
    assert stds.keys() == COUNTS[variant].keys()
    for name, std in stds.items():
        layer = convnet.get_submodule(name)
        error = 4 / (2 * layer.weight.numel()) ** 0.5  # four standard errors of the estimate
        assert layer.weight.std().item() == pytest.approx(std, rel=error)
        assert layer.bias.count_nonzero() == 0
    assert stds["conv1"] == 0.0001


def test_the_same_seed_gives_the_same_weights() -> None:
    torch.manual_seed(1)
    one = net("13pct").state_dict()
    torch.manual_seed(1)
    torch.testing.assert_close(one, net("13pct").state_dict(), rtol=0, atol=0)


def test_the_first_layers_equal_the_loops() -> None:
    """18pct up to rnorm1, on the corner of the image that determines rnorm1's first 3x3 values."""
    convnet, x = net("18pct"), images("18pct")
    expected = reference.conv2d(
        x[:, :, :11, :11], convnet.conv1.weight, convnet.conv1.bias, stride=1, padding=2
    )[:, :, :9, :9]  # these do not depend on the missing pixels
    expected = reference.pool2d(expected, size=3, stride=2, kind="max", ceil=False).clamp(min=0)
    expected = reference.same_map_norm(expected, size=3, scale=5e-5, power=0.75)[:, :, :3, :3]
    x = nn.Sequential(*[convnet.get_submodule(n) for n in ("conv1", "pool1", "neuron1", "rnorm1")])(
        x
    )
    torch.testing.assert_close(x[:, :, :3, :3], expected)


@pytest.mark.fact(
    "The last window of a pooling extends over the edge and is clipped: 32, 16, 8, 4",
    source="cuda-convnet, layer.py",
    code="model/convnet_cifar10.py:LAYERS",
)
@pytest.mark.parametrize("size", [8, 7, 6])
def test_pools_round_up_and_clip_the_last_window(size: int) -> None:
    maps = torch.randn(2, 3, size, size)
    for pool, kind in (("max_pool", "max"), ("avg_pool", "average")):
        expected = reference.pool2d(maps, size=3, stride=2, kind=kind, ceil=True)
        assert expected.size(-1) == size // 2
        torch.testing.assert_close(LAYERS[pool](maps.shape[1:], size=3, stride=2)(maps), expected)


@pytest.mark.fact(
    "rnorm also divides by size^2 at the border",
    source="cuda-convnet, layer.py",
    code="model/convnet_cifar10.py:SameMapNorm",
)
def test_same_map_norm_equals_the_loop() -> None:
    maps = 10 * torch.randn(2, 3, 5, 4)
    layer = SameMapNorm(size=3, scale=0.5, power=0.75)
    torch.testing.assert_close(layer(maps), reference.same_map_norm(maps, 3, 0.5, 0.75))
    assert torch.autograd.gradcheck(layer, maps.double().requires_grad_())


@pytest.mark.fact(
    "cmrnorm divides its scale by its size and has k = 1",
    source="cuda-convnet, layer.py",
    code="model/convnet_cifar10.py:LAYERS",
)
def test_cross_map_norm_divides_its_scale_by_the_size() -> None:
    maps = 10 * torch.randn(2, 12, 3, 3)
    layer = LAYERS["cmrnorm"](maps.shape[1:], size=9, scale=0.5, power=0.75)
    expected = reference.local_response_norm(maps, n=9, k=1.0, alpha=0.5 / 9, beta=0.75)
    torch.testing.assert_close(layer(maps), expected)


def locally_connected(padding: int) -> LocallyConnected2d:
    layer = LocallyConnected2d(torch.Size((3, 4, 5)), filters=2, kernel_size=3, padding=padding)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_locally_connected_equals_the_loop(
    padding: int, memory_format: torch.memory_format
) -> None:
    layer = locally_connected(padding)
    maps = torch.randn(2, 3, 4, 5).to(memory_format=memory_format)
    expected = reference.locally_connected(maps, layer.weight, layer.bias, padding)
    torch.testing.assert_close(layer(maps), expected, rtol=1e-4, atol=1e-5)


def test_locally_connected_gradients() -> None:
    layer = locally_connected(padding=1).double()
    maps = torch.randn(2, 3, 4, 5, dtype=torch.double, requires_grad=True)

    def forward(maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, maps)

    assert torch.autograd.gradcheck(forward, (maps, layer.weight, layer.bias))


@pytest.mark.fact(
    "A local layer has separate filters and biases at each position",
    source="cuda-convnet, layer.py",
    code="model/convnet_cifar10.py:LocallyConnected2d",
)
def test_locally_connected_shares_no_weights() -> None:
    layer = locally_connected(padding=1)
    maps = torch.randn(1, 3, 4, 5)
    before = layer(maps)
    with torch.no_grad():
        layer.weight[2, 3] += 1
        layer.bias[0, 0] += 1
    changed = (layer(maps) != before).any(dim=1)[0].nonzero().tolist()
    assert changed == [[0, 0], [2, 3]]


def test_another_activation() -> None:
    relu, tanh = net("13pct"), net("13pct", activation="tanh")
    assert counts(relu) == counts(tanh)
    kinds = {type(layer) for name, layer in tanh.named_children() if name.startswith("neuron")}
    assert kinds == {nn.Tanh}


@pytest.mark.parametrize("variant", ["80sec", "11pct"])
def test_our_batch_norm_equals_torchs(variant: str) -> None:
    ours, other = net(variant, norm="batch"), net(variant, norm="torch")
    other.load_state_dict(ours.state_dict())
    x = images(variant, batch=4)
    torch.testing.assert_close(ours(x), other(x), rtol=1e-3, atol=1e-3)
    assert norm_batches(ours) == [1] * (len(COUNTS[variant]) - 1)
    normed = [name for name in counts(ours) if name.endswith("_norm")]
    assert normed == [f"{name}_norm" for name in COUNTS[variant] if name != "fc10"]


@pytest.mark.parametrize("variant", SIZES)
def test_trains_in_channels_last_and_bfloat16(variant: str) -> None:
    convnet = net(variant).to(memory_format=torch.channels_last)
    x = images(variant, batch=2).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        loss = convnet(x).square().mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in convnet.parameters())


def test_an_unknown_layer_type_is_refused() -> None:
    with pytest.raises(
        ValueError, match="^model.net.layers: pool1 has type pool; allowed are conv, local"
    ):
        net("80sec", layers=[{"name": "pool1", "type": "pool"}])

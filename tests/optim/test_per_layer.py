"""Rates and weight decay per layer compared with cuda-convnet's rule and files."""

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from classic_cnns.optim.momentum_2012 import Momentum2012, per_layer
from tests.recipes import composed

VARIANTS = {  # wc of the files
    "convnet_cifar10": [0.004, 0.004, 0.004, 0.03, 0.03],
    "convnet_cifar10_18pct": [0.004, 0.004, 0.004, 1],
    "convnet_cifar10_13pct": [0, 0, 0.004, 0.004, 0.004],
    "convnet_cifar10_11pct_first": [0, 0, 0.004, 0.004, 0.004],
    "convnet_cifar10_11pct": [0, 0, 0.004, 0.004, 0.01],
}


def make(net: nn.Module, weight_decay: dict[str, float]) -> Momentum2012:
    return per_layer(
        net.named_parameters(), lr=0.1, bias_lr=0.2, momentum=0.9, weight_decay=weight_decay
    )


def small_net() -> nn.Sequential:
    net = nn.Sequential()
    net.conv1 = nn.Conv2d(1, 2, 3)
    net.conv1_norm = nn.BatchNorm2d(2)
    net.fc10 = nn.Linear(2, 10)
    return net


@pytest.mark.fact(
    "Biases have the rate epsB, twice epsW, and no weight decay",
    source="cuda-convnet, layer-params",
    code="optim/momentum_2012.py:per_layer",
)
def test_follows_the_update_rule_of_cuda_convnet() -> None:
    """inc = mom inc - wc eps w + eps grad, w += inc; wc is 0 and eps twice as large for biases."""
    net, wc = small_net(), {"conv1": 0.5, "fc10": 0.25}
    optimizer = make(net, wc)
    expected = {name: p.detach().clone() for name, p in net.named_parameters()}
    inc = {name: torch.zeros_like(p) for name, p in expected.items()}
    for _ in range(3):
        for name, parameter in net.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            decays = name in ("conv1.weight", "fc10.weight")
            eps = 0.1 if decays else 0.2
            decay = wc[name.split(".")[0]] if decays else 0.0
            descent = -parameter.grad  # cuda-convnet's grad points downhill
            inc[name] = 0.9 * inc[name] - decay * eps * expected[name] + eps * descent
            expected[name] = expected[name] + inc[name]
        optimizer.step()
    torch.testing.assert_close({name: p.detach() for name, p in net.named_parameters()}, expected)


def test_schedules_scale_all_groups() -> None:
    optimizer = make(small_net(), {"conv1": 0.5, "fc10": 0.25})
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1], gamma=0.1)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.02, 0.01])


@pytest.mark.fact(
    "Each layer has the weight decay wc of its file; epsW is 0.001 and epsB 0.002",
    source="cuda-convnet, layer-params",
    code="optim/momentum_2012.py:per_layer",
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_recipe_has_a_value_for_each_layer_of_its_net(variant: str) -> None:
    config = composed(f"model={variant}")
    config.data.channels = 3
    net = instantiate(config.model.net)
    optimizer = instantiate(config.optim.optimizer)(net.named_parameters())
    names = {parameter: name for name, parameter in net.named_parameters()}
    decays = {}
    for group in optimizer.param_groups:
        assert group["momentum"] == 0.9
        for parameter in group["params"]:
            layer, kind = names.pop(parameter).split(".")
            assert group["lr"] == (0.002 if kind == "bias" else 0.001)
            if kind == "bias":
                assert group["weight_decay"] == 0
            else:
                decays[layer] = group["weight_decay"]
    assert not names  # every parameter is in a group
    layers = [name.split(".")[0] for name, _ in net.named_parameters() if name.endswith("weight")]
    assert [decays[layer] for layer in layers] == VARIANTS[variant]
    instantiate(config.optim.scheduler)(optimizer, total_steps=1000)
    assert config.optim.cuts[-1] < config.optim.epochs


@pytest.mark.fact(
    "Rates are a tenth in the last 20 epochs and a hundredth in the last 10; in 80sec a tenth "
    "after 8",
    source="cuda-convnet, Methodology and layer-params",
    code="optim/cuts.py:cuts",
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_rates_are_cut_after_the_epochs_of_the_files(variant: str) -> None:
    recipe = composed(f"model={variant}").optim
    optimizer = make(small_net(), {"conv1": 0.5, "fc10": 0.25})
    scheduler = instantiate(recipe.scheduler)(optimizer, total_steps=recipe.epochs)
    ratios = []
    for _ in range(recipe.epochs):  # one step per epoch
        ratios.append(optimizer.param_groups[0]["lr"] / 0.1)
        optimizer.step()
        scheduler.step()
    expected = [1.0] * 8 + [0.1] * 2  # 80sec
    if variant != "convnet_cifar10":
        expected = [1.0] * (recipe.epochs - 20) + [0.1] * 10 + [0.01] * 10
    assert ratios == pytest.approx(expected)


@pytest.mark.fact(
    "13pct was tested with nine patches, 11pct with ten",
    source="cuda-convnet, convdata.py",
    code="conf/experiment/convnet_cifar10_13pct.yaml:data",
)
@pytest.mark.parametrize(("variant", "patches"), [("13pct", "nine"), ("11pct", "ten")])
def test_the_experiments_are_tested_with_the_original_patches(variant: str, patches: str) -> None:
    data = composed(f"experiment=convnet_cifar10_{variant}").data
    assert (data.augment, data.test_patches) == ("crop_flip", patches)


@pytest.mark.parametrize("weight_decay", [{"conv1": 0.5}, {"conv1": 0, "fc10": 0, "fc11": 0}])
def test_a_missing_or_unknown_layer_is_refused(weight_decay: dict[str, float]) -> None:
    with pytest.raises(
        ValueError, match="^optim.weight_decay: fc1.*one value for each of conv1, fc10$"
    ):
        make(small_net(), weight_decay)

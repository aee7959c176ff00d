"""Saturated and dead units compared with counting by hand."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from classic_cnns.callbacks.activations import Activations, inactive_share, record
from classic_cnns.callbacks.pictures import Pictures
from classic_cnns.model.lenet5 import LeNet5
from tests.recipes import MODELS, recipe


class Mixed(nn.Module):
    """ReLU as a function, tanh as a module; one map of two dead, three units of four saturated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 1), nn.Linear(2, 4)
        self.squash = nn.Tanh()
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.bias.copy_(torch.tensor([-1.0, 0.5]))
            self.fc.weight.zero_()
            self.fc.bias.copy_(torch.tensor([-9.0, 0.0, 9.0, 3.0]))

    def forward(self, images):
        return self.squash(self.fc(F.relu(self.conv(images)).mean((2, 3))))


def test_dead_and_saturated_units_are_counted():
    found = record(Mixed(), torch.randn(5, 1, 3, 3)).found
    assert {layer: kind for layer, (kind, _) in found.items()} == {"conv": "relu", "fc": "tanh"}
    assert inactive_share(*found["conv"]) == 0.5 and inactive_share(*found["fc"]) == 0.75


def test_a_map_is_dead_if_it_is_zero_at_every_place_of_every_image():
    outputs = torch.zeros(3, 5, 4, 4)
    outputs[2, 1, 3, 3] = 0.1
    outputs[:, 4] = torch.rand(3, 4, 4)
    alive = [any(outputs[i, unit].max() > 0 for i in range(3)) for unit in range(5)]
    assert alive == [False, True, False, False, True]
    assert inactive_share("relu", outputs) == pytest.approx(3 / 5)
    assert inactive_share("relu", outputs[:2]) == pytest.approx(4 / 5)


def test_the_scaled_tanh_is_saturated_if_its_slope_is_below_a_twentieth():
    net = LeNet5()
    with torch.no_grad():
        for layer in (net.C1, net.F6):
            layer.weight.mul_(20)
    images = torch.randn(4, 1, 32, 32)
    kind, output = record(net, images).found["C1"]
    sums = net.C1(images).requires_grad_()
    (slope,) = torch.autograd.grad((1.7159 * torch.tanh(2 / 3 * sums)).sum(), sums)
    want = (slope < 0.05 * 1.7159 * 2 / 3).float().mean().item()
    assert 0.05 < want < 0.95 and inactive_share(kind, output) == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize("subsampling", ["trainable", "average", "max"])
def test_the_layers_of_lenet5_have_the_names_of_figure_2(subsampling):
    net, images = LeNet5(subsampling=subsampling), torch.randn(2, 1, 32, 32)
    found = record(net, images).found
    assert list(found) == ["C1", "S2", "C3", "S4", "C5", "F6"]
    (_, sigmoid), expected = found["S2"], net.squash(net.S2(net.squash(net.C1(images))))
    torch.testing.assert_close(1.7159 * (2 * sigmoid - 1), expected)
    torch.testing.assert_close(record(net, images).scaled["S2"], expected)
    assert list(record(net, images, pooling=True).found) == list(found)


def test_units_pooled_before_their_activation_belong_to_the_convolution():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 1),
        nn.MaxPool2d(2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(2, 3, 1),
        nn.Tanh(),
    )
    images = torch.randn(1, 1, 4, 4)
    assert list(record(net, images).found) == ["0", "4"]
    found = record(net, images, pooling=True).found
    assert list(found) == ["0", "3", "4"] and found["3"][0] == "pool"
    torch.testing.assert_close(found["3"][1], net[:4](images))


@pytest.mark.parametrize("model", MODELS)
def test_activations_are_found_in_every_net_without_changing_it(model):
    made = recipe(f"model={model}")
    before = {name: weight.clone() for name, weight in made.net.state_dict().items()}
    assert record(made.net.eval(), torch.zeros(2, *made.shape)).found
    assert all(torch.equal(x, before[name]) for name, x in made.net.state_dict().items())


@pytest.mark.parametrize("callback", [Activations(), Pictures()], ids=lambda c: type(c).__name__)
def test_the_callbacks_ignore_modules_of_other_projects(callback):
    module = pl.LightningModule()
    module.net, module.num_classes = nn.Linear(3, 2), 2
    trainer = SimpleNamespace(global_step=0, is_last_batch=True, sanity_checking=False, loggers=[])
    batch = {"tokens": torch.zeros(4, 3)}
    callback.on_train_batch_start(trainer, module, batch, 0)
    callback.on_before_optimizer_step(trainer, module, None)
    callback.on_validation_batch_end(trainer, module, None, batch, 0)
    callback.on_validation_end(trainer, module)
    callback.on_test_start(trainer, module)
    callback.on_test_batch_end(trainer, module, torch.zeros(4), batch, 0)
    callback.on_test_end(trainer, module)


def test_a_pooling_layer_that_is_called_again_has_a_row_for_each_call():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(1, 1, 1), nn.MaxPool2d(2)
            self.deep = nn.Conv2d(1, 1, 1)

        def forward(self, images):
            once = self.pool(self.conv(images).relu())
            return self.pool(self.deep(once).relu())

    found = record(Net(), torch.rand(1, 1, 8, 8), pooling=True).found
    sizes = {name: output.shape[-1] for name, (_, output) in found.items()}
    assert list(sizes.items()) == [("conv", 8), ("pool", 4), ("deep", 4), ("pool'", 2)]

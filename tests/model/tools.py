"""Helpers for tests of nets: parameters and output shapes of layers, and nets from configs."""

from copy import deepcopy
from typing import Any

import torch
from hydra.utils import get_class
from torch import nn

from tests.recipes import composed


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def counts(net: nn.Module) -> dict[str, int]:
    """The number of parameters of each layer that has any."""
    return {name: count(layer) for name, layer in net.named_children() if count(layer)}


def shapes(net: nn.Module, images: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """The output shape of each layer for one image; of a layer called twice the last one."""
    seen: dict[str, tuple[int, ...]] = {}

    def record(name: str):
        return lambda _, __, out: seen.__setitem__(name, tuple(out.shape[1:]))

    hooks = [layer.register_forward_hook(record(name)) for name, layer in net.named_children()]
    net.eval()(images)
    for hook in hooks:
        hook.remove()
    return seen


def norm_batches(net: nn.Module) -> list[int]:
    """How many training batches each batch normalisation of the net has processed."""
    return [
        int(buffer) for name, buffer in net.named_buffers() if name.endswith("num_batches_tracked")
    ]


def model_config(name: str, channels: int, **net: Any):
    """The config of model=<name> for ten classes, with `net` overriding keys of its net."""
    config = deepcopy(composed(f"model={name}"))
    config.data.channels = channels
    for key, value in net.items():
        assert key in config.model.net, key
        config.model.net[key] = value
    return config.model


def configured(name: str, channels: int, **net: Any) -> nn.Module:
    """The net of that config, built without Hydra, which would wrap its errors."""
    config = dict(model_config(name, channels, **net).net)
    return get_class(config.pop("_target_"))(**config)

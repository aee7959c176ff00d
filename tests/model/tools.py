"""What the tests of all nets ask: what a layer holds, what it puts out, what a file configures."""

from copy import deepcopy
from typing import Any

import torch
from hydra.utils import get_class
from torch import nn

from tests.recipes import composed


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def counts(net: nn.Module) -> dict[str, int]:
    """The parameters of each layer of the net that has any."""
    return {name: count(layer) for name, layer in net.named_children() if count(layer)}


def shapes(net: nn.Module, images: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """What each layer of the net puts out for one image; a layer called twice shows the last."""
    seen: dict[str, tuple[int, ...]] = {}

    def note(name: str):
        return lambda _, __, out: seen.__setitem__(name, tuple(out.shape[1:]))

    hooks = [layer.register_forward_hook(note(name)) for name, layer in net.named_children()]
    net.eval()(images)
    for hook in hooks:
        hook.remove()
    return seen


def norms_ran(net: nn.Module) -> list[int]:
    """How often each batch normalisation of the net has seen a batch in training."""
    return [
        int(buffer) for name, buffer in net.named_buffers() if name.endswith("num_batches_tracked")
    ]


def model_config(name: str, channels: int, **net: Any):
    """model=<name> with ten classes and what a command line would override."""
    config = deepcopy(composed(f"model={name}"))
    config.data.channels = channels
    for key, value in net.items():
        assert key in config.model.net, key
        config.model.net[key] = value
    return config.model


def configured(name: str, channels: int, **net: Any) -> nn.Module:
    """The net of that file; its errors come as they are, not wrapped by Hydra."""
    config = dict(model_config(name, channels, **net).net)
    return get_class(config.pop("_target_"))(**config)

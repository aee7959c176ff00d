"""Gradient descent with momentum as AlexNet was trained.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks,
NIPS 2012, section 5.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class Momentum2012(Optimizer):
    """Gradient descent with a velocity that includes the learning rate.

        v <- momentum * v - weight_decay * lr * w - lr * gradient
        w <- w + v

    `torch.optim.SGD` multiplies by the rate when it updates the weights. The two are equal while
    the rate is constant. After a change of the rate, torch applies the new rate to old gradients
    too; here old gradients keep theirs.
    """

    def __init__(self, params: ParamsT, *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns the result of the closure, if any."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            lr, weights = group["lr"], [w for w in group["params"] if w.grad is not None]
            if not weights:
                continue
            gradients = [w.grad for w in weights]
            for w in weights:
                if not self.state[w]:
                    self.state[w]["velocity"] = torch.zeros_like(w)
            velocities = [self.state[w]["velocity"] for w in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, weights, alpha=-group["weight_decay"] * lr)
            torch._foreach_add_(velocities, gradients, alpha=-lr)
            torch._foreach_add_(weights, velocities)
        return loss


def per_layer(
    params: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    bias_lr: float,
    momentum: float,
    weight_decay: Mapping[str, float],
) -> Momentum2012:
    """The same rule for `net.named_parameters()`, as in cuda-convnet's layer-params-*.cfg.

    Weights have the rate `lr` (epsW) and their layer's entry in `weight_decay` (wc). Biases, and
    the channel parameters of normalisations, have the rate `bias_lr` (epsB) and no decay. Schedules
    scale all rates by the same factor.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    weighted = set()
    for name, parameter in params:
        layer, _, kind = name.rpartition(".")
        if kind == "bias" or parameter.dim() == 1:  # 1: a normalisation's gamma
            group = (bias_lr, 0.0)
        else:
            weighted.add(layer)
            group = (lr, weight_decay.get(layer, 0.0))
        groups.setdefault(group, []).append(parameter)
    if weighted != set(weight_decay):
        unmatched = ", ".join(sorted(weighted ^ set(weight_decay)))
        allowed = ", ".join(sorted(weighted))
        raise ValueError(f"optim.weight_decay: {unmatched}: needs one value for each of {allowed}")
    rows = [
        {"params": members, "lr": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]
    return Momentum2012(rows, lr=lr, momentum=momentum, weight_decay=0.0)

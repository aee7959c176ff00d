"""Rates and weight decay for each layer, as cuda-convnet's layer-params-*.cfg give them."""

from collections.abc import Iterable, Mapping

from torch import nn

from classic_cnns.optim.momentum_2012 import Momentum2012


def per_layer(
    params: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    bias_lr: float,
    momentum: float,
    weight_decay: Mapping[str, float],
) -> Momentum2012:
    """The rule of 2012, which is cuda-convnet's, over `net.named_parameters()`.

    Weights learn at `lr` (epsW) and decay by the entry of their layer in `weight_decay` (wc);
    biases, and what a normalisation learns per channel, learn at `bias_lr` (epsB) and never decay.
    Schedules scale all rates alike.
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
        odd = ", ".join(sorted(weighted ^ set(weight_decay)))
        allowed = ", ".join(sorted(weighted))
        raise ValueError(f"optim.weight_decay: {odd}: needs one value for each of {allowed}")
    rows = [
        {"params": members, "lr": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]
    return Momentum2012(rows, lr=lr, momentum=momentum, weight_decay=0.0)

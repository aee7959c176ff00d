"""Learning rates that are constant between cuts: the schedules of 2011 and 2012."""

from collections.abc import Sequence
from math import prod

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau


def cuts(
    optimizer: Optimizer,
    *,
    total_steps: int,
    after: Sequence[int],
    epochs: int,
    factor: float | Sequence[float],
) -> LambdaLR:
    """Multiply all rates by `factor`, or by its entry for this cut, after each epoch in `after`.

    `after` refers to a run of `epochs` epochs and is scaled to `total_steps`.
    """
    steps = [round(total_steps * epoch / epochs) for epoch in after]
    factors = [factor] * len(steps) if isinstance(factor, float) else factor
    pairs = list(zip(steps, factors, strict=True))
    return LambdaLR(optimizer, lambda step: prod(f for cut, f in pairs if step >= cut))


def cuts_at_stalls(
    optimizer: Optimizer, *, patience: int, times: int, factor: float
) -> ReduceLROnPlateau:
    """Multiply all rates by `factor` when the validation error stalls, at most `times` times.

    It stalls when it has not improved for more than `patience` epochs (K12, 5).
    """
    lowest = [group["lr"] * factor**times for group in optimizer.param_groups]
    return ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience, threshold=0.0, min_lr=lowest, eps=0.0
    )

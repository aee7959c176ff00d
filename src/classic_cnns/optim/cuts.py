"""A rate that stays, and is cut at given points of the run: the schedules of 2011 and 2012."""

from collections.abc import Sequence
from math import prod

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cuts(
    optimizer: Optimizer,
    *,
    total_steps: int,
    after: Sequence[int],
    epochs: int,
    factor: float | Sequence[float],
) -> LambdaLR:
    """Multiply all rates by `factor`, or by its entry for this cut, after each epoch in `after`.

    The table is one for `epochs` epochs; a run of more or fewer stretches it to its `total_steps`.
    """
    steps = [round(total_steps * epoch / epochs) for epoch in after]
    factors = [factor] * len(steps) if isinstance(factor, float) else factor
    pairs = list(zip(steps, factors, strict=True))
    return LambdaLR(optimizer, lambda step: prod(f for cut, f in pairs if step >= cut))

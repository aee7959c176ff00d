"""A rate that stays, and is cut at given points of the run: the schedules of 2011 and 2012."""

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cuts(
    optimizer: Optimizer, *, total_steps: int, after: Sequence[int], epochs: int, factor: float
) -> LambdaLR:
    """Multiply all rates by `factor` after each epoch in `after`.

    The table is one for `epochs` epochs; a run of more or fewer stretches it to its `total_steps`.
    """
    steps = [round(total_steps * epoch / epochs) for epoch in after]
    return LambdaLR(optimizer, lambda step: factor ** sum(step >= cut for cut in steps))

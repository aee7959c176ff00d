"""Costs of Lightning's loop that are avoided, and the only change of a private part (2.6).

`tests/trainer/test_lightning_internals.py` explains its failure if a new version changes that part.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.profilers import PassThroughProfiler


class NoProfiler(PassThroughProfiler):
    """Lightning's default, without a generator around each of the 60 hooks in a step.

    The generators take about a percent of a LeNet-5 step.
    """

    def profile(self, action_name: str) -> AbstractContextManager:  # type: ignore[override]
        return nullcontext()


def disable_sigterm_exchange(trainer: pl.Trainer) -> None:
    """Disable Lightning's exchange of a SIGTERM flag between the ranks before each batch.

    The exchange waits for all ranks, and on a GPU for all of its work: 8 to 14 % of a LeNet-5 step
    on two ranks (Lightning-AI/pytorch-lightning#21487). `callbacks.stop` exchanges signals instead,
    ten times a second and without waiting.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    assert hasattr(loop, "_broadcast_sigterm_tensor"), "Lightning has moved its SIGTERM flag"
    loop._broadcast_sigterm_tensor = lambda: None

"""The only module that changes a private part of Lightning (2.6), and the reason for it.

`tests/trainer/test_lightning_internals.py` explains its failure if a new version changes that part.
"""

from typing import Any

import lightning.pytorch as pl


def disable_sigterm_exchange(trainer: pl.Trainer) -> None:
    """Disable Lightning's exchange of a SIGTERM flag between the ranks before each batch.

    The exchange waits for all ranks, and on a GPU for all of its work: 8 to 14 % of a LeNet-5 step
    on two ranks (Lightning-AI/pytorch-lightning#21487). `callbacks.stop` exchanges signals instead,
    ten times a second and without waiting.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    assert hasattr(loop, "_broadcast_sigterm_tensor"), "Lightning has moved its SIGTERM flag"
    loop._broadcast_sigterm_tensor = lambda: None

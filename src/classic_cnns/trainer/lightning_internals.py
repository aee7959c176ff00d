"""The one place that changes a private part of Lightning (2.6), and why.

`tests/trainer/test_lightning_internals.py` fails in words when a new version moves it.
"""

from typing import Any

import lightning.pytorch as pl


def send_no_signal_flag(trainer: pl.Trainer) -> None:
    """Let the ranks not exchange Lightning's SIGTERM flag before each batch.

    The exchange waits for all ranks, and on a GPU for all of its work: 8 to 14 % of a LeNet-5 step
    on two ranks (Lightning-AI/pytorch-lightning#21487). `callbacks.stop` tells the ranks of a
    signal instead, ten times a second and without waiting.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    assert hasattr(loop, "_broadcast_sigterm_tensor"), "Lightning has moved its SIGTERM flag"
    loop._broadcast_sigterm_tensor = lambda: None

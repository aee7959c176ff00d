"""Checkpoints that are always whole: written beside, synced, renamed; plain types only."""

import io
from math import inf
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from classic_cnns.files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own writes to $TMPDIR and moves, which across disks is a copy that can break."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        Path(path).parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()  # torch hides the error of a full disk when it writes by itself
        torch.save(checkpoint, buffer)
        with replacing(path) as file:
            file.write(buffer.getbuffer())


class BestAndLast(Checkpoint):
    """`last.ckpt` at the end of every epoch; `best.ckpt` when the validation error is a new low.

    Lightning's ModelCheckpoint writes `last` only together with a new best, and forgets the best
    when the run's directory was moved.
    """

    def __init__(self, folder: Path) -> None:
        self.best, self.last = folder / "best.ckpt", folder / "last.ckpt"
        self.lowest = inf

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        error = module.results["error/val"]
        if error < self.lowest:
            self.lowest = error
            trainer.save_checkpoint(self.best)
        trainer.save_checkpoint(self.last)

    def state_dict(self) -> dict[str, float]:
        return {"lowest": self.lowest}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.lowest = state["lowest"]

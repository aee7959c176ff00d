"""Checkpoints that are always whole: written beside, synced, renamed; plain types only."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from classic_cnns.files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own writes to $TMPDIR and moves, which across disks is a copy that can break."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        Path(path).parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()  # torch hides the error of a full disk when it writes by itself
        torch.save(checkpoint, buffer)
        with replacing(path) as file:
            file.write(buffer.getbuffer())


def best_and_last(folder: Path) -> ModelCheckpoint:
    """`best.ckpt` by validation error and `last.ckpt`, at the end of every epoch."""
    return ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor="error/val",
        save_last=True,
        save_on_train_epoch_end=True,
        auto_insert_metric_name=False,
        enable_version_counter=False,  # else a resumed run writes last-v1.ckpt beside a stale last
    )

"""Checkpoint files that are always whole: written beside, synced, renamed; plain types only.

They are zip files, in which torch stores a CRC-32 of each tensor; torch itself does not look at it.
"""

import io
import logging
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from classic_cnns import UserError
from classic_cnns.files import replacing

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own writes to $TMPDIR and moves, which across disks is a copy that can break."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()  # torch hides the error of a full disk when it writes by itself
        torch.save(checkpoint, buffer)
        with replacing(path) as file:
            file.write(buffer.getbuffer())

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict[str, Any]:
        return read_checkpoint(path, map_location)


def read_checkpoint(path: Any, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint of ours or of Lightning's in today's form; runs no code that a file holds.

    Raises UserError for a file that is none, or of which one bit is wrong.
    """
    try:
        with zipfile.ZipFile(path) as file:
            unpacked = sum(member.file_size for member in file.infolist())
            assert unpacked <= Path(path).stat().st_size  # torch does not compress
            damaged = file.testzip()
        assert damaged is None
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
        state = checkpoint["state_dict"]
        assert all(isinstance(name, str) and torch.is_tensor(x) for name, x in state.items())
        return updated(checkpoint)
    except Exception as error:  # bytes from elsewhere raise anything
        missing = isinstance(error, FileNotFoundError)
        reason = "is not there" if missing else (
            "is cut off, damaged or no checkpoint of plain tensors; try another one"
        )  # fmt: skip
        raise UserError(f"{path}: {reason}") from error


def first_whole(paths: Iterable[Path]) -> Path | None:
    """The first of those that are there, and tells of each before it that is damaged.

    Raises UserError where all are damaged, and returns None where there is none.
    """
    trouble: UserError | None = None
    for path in filter(Path.exists, paths):
        try:
            read_checkpoint(path)
        except UserError as error:
            trouble = trouble or error
            continue
        if trouble:
            log.warning("%s; %s is taken in its place", trouble, path.name)
        return path
    if trouble:
        raise trouble
    return None


def updated(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of version 0.1 in today's keys."""
    if "results" not in checkpoint:
        return checkpoint
    results = checkpoint.pop("results")
    checkpoint["metrics"] = {k: v for k, v in results.items() if k != "time/seconds"}
    checkpoint["seconds"] = results["time/seconds"]
    under_way = checkpoint.pop("epoch_under_way")
    checkpoint["epoch_seconds"] = under_way["seconds"]
    sums, images = under_way["sums"], under_way["sums"]["images"]
    checkpoint["train_sums"] = {
        name: [sums[k], images] for name, k in (("loss", "loss"), ("error", "errors"))
    }
    checkpoint["train_sums"]["accuracy"] = [images - sums["errors"], images]
    for loader in checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", []):
        for name in ("ResidentData", "ImageFolderData"):
            checkpoint[name] = loader
    return checkpoint

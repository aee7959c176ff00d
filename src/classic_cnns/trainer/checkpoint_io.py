"""Atomic checkpoint files with plain types only: written to a temporary file, synced, renamed.

Checkpoints are zip files with a CRC-32 of each tensor, which torch itself does not verify.
"""

import io
import logging
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from classic_cnns import UserError
from classic_cnns.files import atomic_write

log = logging.getLogger(__name__)


HYPERPARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own IO writes to $TMPDIR and moves the file, which is not atomic across disks.

    Hyperparameters that are no plain values are left out; `config.yaml` describes them.
    """

    checked = False  # whether the first checkpoint can be read

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        for name in HYPERPARAMETERS:
            if isinstance(checkpoint.get(name), dict):
                checkpoint[name] = {k: v for k, v in checkpoint[name].items() if is_plain(v)}
        buffer = io.BytesIO()  # torch would hide the errno of a full disk
        torch.save(checkpoint, buffer)
        if not self.checked:  # not after hours, when the run is tested or resumed
            self.checked = True
            buffer.seek(0)
            try:
                torch.load(buffer, map_location="meta", weights_only=True)  # copies no tensor
            except pickle.UnpicklingError as error:
                kind = re.search(r"Unsupported .*?(?= was not|\n|$)", str(error))
                raise UserError(
                    f"{path}: cannot be written, since a module or callback puts other things than "
                    f"plain values and tensors into it ({kind[0] if kind else 'an object'}); see "
                    "its on_save_checkpoint() and state_dict()"
                ) from error
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict[str, Any]:
        # Lightning names no place, and torch then takes that of the run, which may be a GPU.
        return read_checkpoint(path, map_location or "cpu")


def is_plain(value: Any) -> bool:
    """Whether a value consists of numbers, texts, tensors, lists and dictionaries."""
    if isinstance(value, dict):
        return type(value) is dict and all(map(is_plain, [*value, *value.values()]))
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str) or torch.is_tensor(value)


def read_checkpoint(path: Any, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint of ours or of Lightning's; loading it runs no code.

    Raises UserError if the file is missing, damaged in any bit, or not a checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as file:
            unpacked = sum(member.file_size for member in file.infolist())
            if unpacked > Path(path).stat().st_size or file.testzip():
                raise ValueError("is compressed, which torch does not do, or damaged")
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
        state = checkpoint["state_dict"]
        if not all(isinstance(name, str) and torch.is_tensor(x) for name, x in state.items()):
            raise ValueError("has other values than tensors")
        return upgraded_checkpoint(checkpoint)
    except FileNotFoundError as error:
        raise UserError(f"{path}: is not there") from error
    except Exception as error:  # arbitrary bytes can raise anything
        raise UserError(
            f"{path}: is cut off, damaged or no checkpoint of plain tensors; try another one"
        ) from error


def first_intact(paths: Iterable[Path]) -> Path | None:
    """The first of the existing files that is intact; logs each damaged one before it.

    Returns None if there are no files; raises UserError if all are damaged.
    """
    damage: UserError | None = None
    for path in filter(Path.exists, paths):
        try:
            read_checkpoint(path)
        except UserError as error:
            damage = damage or error
            continue
        if damage:
            rank_zero_only(log.warning)("%s; %s is used instead", damage, path.name)
        return path
    if damage:
        raise damage
    return None


def upgraded_checkpoint(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Upgrade a checkpoint of version 0.1."""
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

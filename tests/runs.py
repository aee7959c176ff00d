"""Read the files of a run directory."""

import json
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def result(directory: Path) -> dict:
    return json.loads((directory / "result.json").read_text())


def metrics(directory: Path) -> dict[str, float]:
    """All metrics except speeds, which differ in each run."""
    found = result(directory)["metrics"]
    return {name: value for name, value in found.items() if not name.startswith("speed/")}


def checkpoint(directory: Path, name: str = "last") -> dict:
    return torch.load(directory / "checkpoints" / f"{name}.ckpt", weights_only=True)


def weights(directory: Path | str = "run", name: str = "last") -> dict[str, torch.Tensor]:
    return checkpoint(Path(directory), name)["state_dict"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def events(directory: Path | str = "run") -> EventAccumulator:
    return EventAccumulator(str(directory)).Reload()

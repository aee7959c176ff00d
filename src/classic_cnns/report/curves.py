"""One picture of learning curves, with a band where runs differ in nothing but their seed."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from classic_cnns.report.results import Row


def validation_errors(directory: Path) -> list[float]:
    """Of each epoch of a run, a start after a start; empty where there are none yet."""
    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0})
    if (directory / "tensorboard").is_dir():
        events.Reload()
    known = "error/val" in events.scalars.Keys()
    return [event.value for event in events.scalars.Items("error/val")] if known else []


def write(path: Path, rows: Sequence[Row]) -> None:
    """Validation error over epochs: the mean, and a standard deviation around it, as a PNG."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="validation error [%]", yscale="log")
    for group in dict.fromkeys(row.group for row in rows):
        curves = [validation_errors(row.directory) for row in rows if row.group == group]
        curves = [curve for curve in curves if curve]
        if not curves:
            continue
        errors = 100 * np.array(list(zip_longest(*curves, fillvalue=np.nan)))  # (epochs, runs)
        mean, deviation = np.nanmean(errors, 1), np.nanstd(errors, 1)
        epochs = range(1, len(errors) + 1)
        label = " ".join(f"{key}={value}" for key, value in group) or "all"
        (drawn,) = axes.plot(epochs, mean, marker=".", label=f"{label}, n={len(curves)}")
        axes.fill_between(
            epochs, mean - deviation, mean + deviation, color=drawn.get_color(), alpha=0.2, lw=0
        )
    axes.grid(alpha=0.3)
    if axes.lines:
        figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=120)

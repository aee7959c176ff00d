"""A figure of learning curves, with mean and deviation over seeds."""

import textwrap
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from classic_cnns.report.results import (
    MARKERS,
    Table,
    drawn_text,
    format_parameter,
    is_share,
    read_metrics,
)


def curve(directory: Path, metric: str) -> list[float]:
    """The metric after each epoch, nan without one; for a repeated epoch, the later value."""
    lines, _ = read_metrics(directory)
    values = {line["epoch"]: line["metrics"].get(metric, np.nan) for line in lines}
    return [values.get(epoch, np.nan) for epoch in range(1, max(values, default=0) + 1)]


def label_log_axis(axes: Any) -> None:
    """Give a logarithmic y axis several labels, also if it is as short as from 25 to 100 %."""
    low, high = axes.get_ylim()
    subs = range(1, 10) if high < 10 * low else (1, 2, 5)
    axes.yaxis.set_major_locator(LogLocator(subs=tuple(subs)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def write(path: Path, table: Table) -> None:
    """Plot the table's metric over epochs as a PNG: mean ± standard deviation over seeds.

    Of more groups than there are colours and styles of lines, the best are named, others grey.
    """
    groups = table.groups()
    common = set.intersection(*map(set, groups or [()]))
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel=drawn_text(table.metric, 40))
    colors, styles = list(TABLEAU_COLORS), ("-", "--", ":", "-.")
    axes.set_prop_cycle(
        color=colors * len(styles),
        marker=list(MARKERS) * len(styles),
        linestyle=[style for style in styles for _ in colors],
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if (others := len(groups) - len(colors) * len(styles)) > 0:
        groups = dict(sorted(groups.items(), key=lambda group: table.rank(*group[1])))
    every = {row.directory: curve(row.directory, table.metric) for row in table.rows}
    if table.direction == "minimize" and all(x > 0 or x != x for x in chain(*every.values())):
        axes.set_yscale("log")
    percent = is_share(table.metric)
    form = (lambda y, _: f"{100 * y:g}%") if percent else (lambda y, _: f"{y:g}")
    axes.yaxis.set_major_formatter(FuncFormatter(form))
    for left, (group, rows) in zip(range(len(groups), 0, -1), groups.items(), strict=True):
        curves = [every[row.directory] for row in rows]
        curves = [found for found in curves if np.isfinite(found).any()]
        # (epochs, runs); inf is left out too
        values = np.ma.masked_invalid(list(zip(*curves, strict=False)))
        # Not every epoch has a validation; where one run is missing, the mean would jump.
        measured = values.count(-1) == len(curves)
        if not measured.any() or not curves:
            continue
        epochs, values = 1 + np.flatnonzero(measured), values[measured]
        mean, deviation = values.mean(1), values.std(1, ddof=1)  # none of a single run
        if left <= others:
            axes.plot(epochs, mean, color="lightgrey", linestyle="-", lw=0.8, zorder=1)
            continue
        own = [(key, value) for key, value in group if value and (key, value) not in common]
        words = [drawn_text(f"{key}={format_parameter(value)}", 50) for key, value in own]
        label = " ".join(words) or ("all" if len(groups) == 1 else "defaults")
        label = textwrap.fill(label, 100, max_lines=2, placeholder=" …")
        (drawn,) = axes.plot(epochs, mean, ms=4, label=f"{label}, n={len(curves)}")
        axes.fill_between(
            epochs, mean - deviation, mean + deviation, color=drawn.get_color(), alpha=0.2, lw=0
        )
    if others > 0:
        axes.plot([], color="lightgrey", linestyle="-", label=f"{others} others")
    if axes.get_yscale() == "log":
        label_log_axis(axes)
    axes.grid(alpha=0.3)
    if axes.lines:
        lines = sum(1 + label.count("\n") for label in axes.get_legend_handles_labels()[1])
        figure.set_figheight(5 + 0.2 * lines)
        band = "mean ± standard deviation" if max(map(len, groups.values())) > 1 else ""
        figure.legend(loc="outside lower center", title=band, fontsize=8, title_fontsize=8)
    figure.savefig(path, dpi=120)

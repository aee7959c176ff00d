"""Figures of the claims, PNG and SVG, in the form of the paper's figure if there is one."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
from claims import value, verdict  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib import ticker  # noqa: E402

from classic_cnns.report.curves import label_log_axis  # noqa: E402
from classic_cnns.report.results import MARKERS  # noqa: E402

plt.rcParams["svg.hashsalt"] = "claims"  # the same file from the same numbers


def draw(claim: dict[str, Any], result: dict[str, Any], path: Path) -> None:
    """Draw a claim's results to `path`.png and `path`.svg."""
    runs = {side: found["runs"] for side, found in result["sides"].items()}
    figure = plt.figure(figsize=(7, 4), layout="constrained")
    PICTURES[claim.get("picture", "curves")](figure, claim, runs)
    figure.suptitle(f"{claim['title']}: {verdict(claim, result)}")
    for suffix, stamp in (("png", {"Software": None}), ("svg", {"Date": None})):
        figure.savefig(path.with_suffix(f".{suffix}"), dpi=110, metadata=stamp)
    plt.close(figure)


def middle(runs: list[dict[str, Any]], metric: str) -> tuple[range, list[float]]:
    """Epochs, and the mean of a metric in % over seeds; some runs may have diverged."""
    curves = [run["epochs"][metric] for run in runs if run["epochs"][metric]]
    shortest = min(map(len, curves), default=0)
    return range(1, shortest + 1), [100 * mean(c[i] for c in curves) for i in range(shortest)]


def plot(axes: Any, runs: list[dict[str, Any]], metric: str, line: str, **options: Any) -> None:
    """The mean of a metric over epochs; if runs have ended at different epochs, each run."""
    lengths = {len(run["epochs"][metric]) for run in runs} - {0}
    for number, part in enumerate([[run] for run in runs] if len(lengths) > 1 else [runs]):
        label = options.get("label") if number == 0 else None
        axes.plot(*middle(part, metric), line, **options | {"label": label})


def bars(figure: Any, claim: dict[str, Any], runs: dict[str, list]) -> None:
    """Figures 9 and 10 of 1998: a bar for each network, next to the paper's."""
    metric, paper = claim.get("shown", "error/test"), claim.get("paper", {})
    ours = {side: [100 * value(run, metric) for run in found] for side, found in runs.items()}
    axes, places = figure.subplots(), range(len(runs))
    drawn = [axes.barh([p - 0.2 for p in places], [100 * paper.get(s, 0) for s in runs], 0.38,
                       label="1998", color="0.75")] if paper else []  # fmt: skip
    drawn.append(axes.barh([p + 0.2 * bool(paper) for p in places], list(map(mean, ours.values())),
                           0.38, label="ours", xerr=list(map(stdev, ours.values()))))  # fmt: skip
    for each in drawn:
        numbers = [f"{bar.get_width():.2f}" if bar.get_width() else "" for bar in each]
        axes.bar_label(each, numbers, padding=4, fontsize="small")
    axes.set_yticks(list(places), [side.replace("_", " ") for side in runs])
    axes.invert_yaxis()
    axes.set_xlabel(claim.get("axis", "test error in %"))
    axes.margins(x=0.12)
    if paper:
        axes.legend(loc="lower right")


def figure_1(figure: Any, claim: dict[str, Any], runs: dict[str, list]) -> None:
    """Figure 1 of 2012: training error against epochs, solid and dashed, with a line at 25 %."""
    axes = figure.subplots()
    for (side, found), line in zip(runs.items(), ("-", "--", ":"), strict=False):
        plot(axes, found, "error/train", f"k{line}", label=side)
    axes.axhline(25, color="k", linestyle=(0, (1, 4)), linewidth=1)
    axes.set_ylim(0, 75)
    axes.set_yticks([0, 25, 50, 75])
    axes.set_xlim(0)
    axes.set_xlabel("epochs")
    axes.set_ylabel("training error rate in %")
    axes.legend()


def figure_5(figure: Any, claim: dict[str, Any], runs: dict[str, list]) -> None:
    """Figure 5 of 1998: training and test error against epochs, linear up to 5 %.

    The test set is used only once, after training; during training it is the validation error.
    """
    axes = figure.subplots()
    for color, (side, found) in enumerate(runs.items()):
        for split, line in (("val", "-"), ("train", ":")):
            passes, errors = middle(found, f"error/{split}")
            label = f"{side}, {'validation' if split == 'val' else 'training'}"
            axes.plot(passes, errors, line, marker=".", color=f"C{color}", label=label)
        test = [100 * value(run, "error/test") for run in found]
        axes.errorbar(len(passes) + 0.3 + 0.2 * color, mean(test), stdev(test), fmt="s", capsize=3,
                      color=f"C{color}", label=f"{side}, test")  # fmt: skip
    axes.set_ylim(0, 5)
    axes.set_xlim(0)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_xlabel("training set iterations")
    axes.set_ylabel("error rate in %")
    axes.legend()


def figure_6(figure: Any, claim: dict[str, Any], runs: dict[str, list]) -> None:
    """Figure 6 of 1998: training and test error against the size of the training set."""
    axes = figure.subplots()
    sizes = [int(side) / 1000 for side in runs]
    for split, line in (("test", "s-"), ("train", "o--")):
        errors = [[100 * value(run, f"error/{split}") for run in found] for found in runs.values()]
        axes.errorbar(sizes, list(map(mean, errors)), list(map(stdev, errors)), fmt=f"k{line}",
                      capsize=3, label="test" if split == "test" else "training")  # fmt: skip
    axes.set_xlim(0, 70)
    axes.set_ylim(0)
    axes.set_xlabel("training set size in thousands")
    axes.set_ylabel("error rate in %")
    axes.legend()


def robustness(figure: Any, claim: dict[str, Any], runs: dict[str, list]) -> None:
    """The error against the strength of a change of the test images, a chart for each kind."""
    figure.set_size_inches(9, 6.5)
    charts = figure.subplots(2, 2).flat
    for axes, (change, values) in zip(charts, claim["changes"].items(), strict=True):
        for marker, (side, found) in zip(MARKERS, runs.items(), strict=False):
            metrics = [f"error/{change} {x:g}" for x in values]
            errors = [100 * mean(value(run, metric) for run in found) for metric in metrics]
            axes.plot(values, errors, marker=marker, markersize=4, label=side.replace("_", " "))
        axes.locator_params("x", steps=[1, 2, 5, 10])
        axes.set_xlabel(UNITS.get(change, change))
        axes.set_ylabel("test error in %")
        axes.set_ylim(0)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()


def layers(figure: Any, claim: dict[str, Any], runs: dict[str, list]) -> None:
    """A bar for each layer and side, and for their mean: the share of saturated or dead units."""
    axes = figure.subplots()
    names = [metric.partition("/")[2] or "mean" for metric in claim["columns"]]
    for number, (side, found) in enumerate(runs.items()):
        shares = [[100 * value(run, metric) for run in found] for metric in claim["columns"]]
        places = [place + 0.4 * number for place in range(len(names))]
        drawn = axes.bar(places, list(map(mean, shares)), 0.38, yerr=list(map(stdev, shares)),
                         label=side)  # fmt: skip
        axes.bar_label(drawn, fmt="%.1f", padding=2, fontsize="small")
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.set_xticks([place + 0.2 * (len(runs) - 1) for place in range(len(names))], names)
    axes.set_ylabel("saturated or dead units in %")
    axes.legend()


def curves(figure: Any, claim: dict[str, Any], runs: dict[str, list]) -> None:
    """Errors against epochs, on a logarithmic scale."""
    axes = figure.subplots()
    for number, (side, found) in enumerate(runs.items()):
        look = {"color": f"C{number}", "marker": MARKERS[number], "markersize": 4, "linewidth": 1}
        plot(axes, found, "error/val", "-", label=side.replace("_", " "), **look)
        plot(axes, found, "error/train", ":", **look)
    for line, label in (("-", "validation"), (":", "training")):
        axes.plot([], [], f"k{line}", label=label)
    axes.set_yscale("log")
    label_log_axis(axes)
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("error in %")
    axes.legend()


UNITS = {
    "vertical shift": "vertical shift in pixels",
    "rotation": "rotation in degrees",
    "inverted pixels": "share of inverted pixels",
}
PICTURES = {
    "bars": bars,
    "curves": curves,
    "figure_1": figure_1,
    "figure_5": figure_5,
    "figure_6": figure_6,
    "layers": layers,
    "robustness": robustness,
}

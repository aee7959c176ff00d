"""`make bench`: this project compared with the usual alternatives.

The two sides of a comparison run in turn, and the result is the median of the ratios: absolute
times depend on the machine and on what else runs on it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median


@dataclass
class Row:
    what: str
    ours: str
    other: str
    ratio: float
    goal: str
    times: list[tuple[float, float]]  # seconds of both sides in each round

    def __str__(self) -> str:
        return f"| {self.what} | {self.ours} | {self.other} | {self.ratio:.2f} | {self.goal} |"


HEAD = "| | | | ratio | goal |\n|---|---|---|--:|--:|"


def compare(
    what: str,
    ours: Callable[[], float],
    other: Callable[[], float],
    goal: str,
    names: tuple[str, str],
    rounds: int = 5,
) -> Row:
    """Measure both sides in turn. A goal "<= 1.1" is for ours/other, ">= 2.5" for other/ours."""
    times = []
    for _ in range(rounds + 1):  # the first round warms up
        times.append((ours(), other()))
    return row(what, times[1:], goal, names)


def row(what: str, times: list[tuple[float, float]], goal: str, names: tuple[str, str]) -> Row:
    faster = goal.startswith(">")
    ratio = median(b / a if faster else a / b for a, b in times)
    ours, other = median(a for a, _ in times), median(b for _, b in times)
    return Row(what, f"{names[0]} {ours:.3g} s", f"{names[1]} {other:.3g} s", ratio, goal, times)


def per_second(row: Row, images: int, names: tuple[str, str]) -> Row:
    """The same row in images per second, if each time is that of `images` images."""
    speeds = [images / median(side) for side in zip(*row.times, strict=True)]
    ours, other = (
        f"{name} {speed:,.0f} images/s" for name, speed in zip(names, speeds, strict=True)
    )
    return replace(row, ours=ours, other=other)

"""The grid of jobs of a command line, checked before anything is started."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice, product
from math import prod
from typing import Any

from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep

from classic_cnns import UserError
from classic_cnns.config.compose import parse_overrides

EMPTY = "-m: the grid is empty; try -m 'seed=range(3)', or leave -m out"


class Grid:
    """`settings` are the overrides of the sweep, `overrides` those of its jobs.

    Raises UserError for invalid words. `groups` are the options of each config group.
    """

    def __init__(self, words: Sequence[str], groups: dict[str, list[str]]) -> None:
        self.groups = groups
        parsed = parse_overrides(words)
        self.settings = [str(override.input_line) for override in parsed if is_setting(override)]
        self.overrides = [override for override in parsed if not is_setting(override)]
        keys = [override.get_key_element().lstrip("+") for override in parsed]
        for override, key in zip(parsed, keys, strict=True):
            word, value = override.input_line, override.value()
            if keys.count(key) > 1:
                raise UserError(f"{key}: is given {keys.count(key)} times; try {key}=a,b")
            if is_setting(override) and override.is_sweep_override():
                raise UserError(f"{word}: applies to the whole sweep; try one value")
            if isinstance(value, RangeSweep) and value.step == 0:
                raise UserError(f"{word}: has steps of 0; try steps of 1")
            if key in ("run_dir", "resume"):
                raise UserError(
                    f"{word}: is for a single run; sweep.dir=<directory> is for a new sweep, or "
                    "one to continue"
                )

    @property
    def words(self) -> list[str]:
        return [str(override.input_line) for override in self.overrides]

    @property
    def varied(self) -> list[Override]:
        return [override for override in self.overrides if override.is_sweep_override()]

    def values(self, override: Override) -> Iterator[str]:
        """The override itself, or for a sweep override one override for each of its values."""
        key, value = override.get_key_element(), override.value()
        if not override.is_sweep_override():
            return iter([str(override.input_line)])
        if isinstance(value, Glob):
            return (f"{key}={name}" for name in value.filter(self.groups.get(key, [])))
        if isinstance(value, IntervalSweep):
            return (f"{key}={end}" for end in (value.start, value.end))
        random.seed(0)  # the same order when the sweep is continued
        return (f"{key}={text}" for text in override.sweep_string_iterator())

    def first(self) -> list[str]:
        """The overrides of the first job; raises UserError if there is none."""
        firsts = [list(islice(self.values(override), 1)) for override in self.overrides]
        if not all(firsts):
            raise UserError(EMPTY)
        return [word for (word,) in firsts]

    def interval_hint(self, error: str) -> str | None:
        """What to write if an interval's values are refused since a whole number is needed."""
        for override in self.varied:
            key, value = override.get_key_element(), override.value()
            if not isinstance(value, IntervalSweep):
                continue
            low: Any = value.start
            high: Any = value.end
            refused = error.startswith(f"{key}={low}: ") and "whole number" in error
            if refused and float(low).is_integer() and float(high).is_integer():
                whole = f"{key}=int(interval({low:g},{high:g}))"
                return f"{override.input_line}: draws numbers with decimals; try '{whole}'"
        return None

    def jobs(self, limit: int) -> list[list[str]]:
        """The overrides of each job, in Hydra's order: the last key varies fastest."""
        if not self.overrides:
            raise UserError(EMPTY)
        for override in self.varied:
            if override.is_interval_sweep():
                raise UserError(
                    f"{override.input_line}: is for a search; add sweep.search.n_trials=20, "
                    f"or try values, as in {override.get_key_element()}=a,b"
                )
        values = [list(islice(self.values(override), limit + 1)) for override in self.overrides]
        for override, words in zip(self.overrides, values, strict=True):
            if len(set(words)) < len(words):
                twice = next(word for word in words if words.count(word) > 1)
                raise UserError(
                    f"{override.input_line}: has {twice} more than once; give each value once"
                )
        if prod(map(len, values)) > limit:
            raise UserError(
                f"the grid has more than {limit:,} jobs; try a smaller one, or "
                "sweep.max_jobs=<as many as you want>"
            )
        return [list(job) for job in product(*values)]


def is_setting(override: Override) -> bool:
    key = override.get_key_element().lstrip("+~")
    return key == "sweep" or key.startswith("sweep.")

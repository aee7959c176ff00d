"""What a sweep's command line may ask for: refused before a job is composed or a folder made."""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from itertools import islice
from math import prod
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from classic_cnns.errors import UserError

NEEDS = {"ray": "ray", "slurm": "submitit"}  # choice of the group, and extra: package
# Of Hydra's own keys those that say what a sweep does, and not what a job is.
OF_THE_SWEEP = ("hydra.sweep", "hydra/sweep", "hydra.launcher", "hydra/launcher", "hydra.mode")


def is_sweep_key(word: str) -> bool:
    return word.lstrip("+~").startswith(("sweep=", "sweep.", *OF_THE_SWEEP))


def parse(words: list[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(words)


def words(config: DictConfig, of: str = "task") -> list[str]:
    """The overrides of the command line, of the task or of Hydra, as they were given."""
    return OmegaConf.to_container(config.hydra.overrides[of])  # type: ignore


def varied(config: DictConfig) -> list[Override]:
    """What the command line and a search, in its config, try several values of."""
    params = config.hydra.sweeper.get("params") or {}
    texts = [*words(config), *(f"{key}={value}" for key, value in params.items())]
    return [override for override in parse(texts) if override.is_sweep_override()]


def check(config: DictConfig) -> None:
    """Raise UserError for a grid that cannot be meant.

    `config` is the sweep's own, composed from all that it does not vary, with Hydra's part.
    """
    overrides = parse(words(config))
    keys = Counter(override.get_key_element().lstrip("+") for override in overrides)
    for key, count in keys.items():
        if count > 1:
            raise UserError(f"{key}: stands on the command line {count} times; try {key}=a,b")
    for override in overrides:
        word, key = override.input_line, override.get_key_element()
        if is_sweep_key(f"{key}=") and override.is_sweep_override():
            raise UserError(f"{word}: holds for the whole sweep; try one value")
        if key in ("run_dir", "resume"):
            raise UserError(
                f"{word}: is for a single run; a sweep's directory, a new one or one to go on "
                "with, is sweep.dir=<directory>"
            )
    choice = config.hydra.runtime.choices.sweep
    if choice in NEEDS and not find_spec(NEEDS[choice]):
        raise UserError(f"sweep={choice}: needs an extra; try pip install -e '.[{choice}]'")
    most = config.sweep.max_jobs
    count = jobs(config, most + 1) if type(most) is int else 1  # else the check of values tells
    if all(map(is_sweep_key, words(config))) or count == 0:
        raise UserError("-m: the grid is empty; try -m 'seed=range(3)', or leave -m out")
    if type(most) is int and count > most:
        raise UserError(
            f"the grid has more than {most:,} jobs; try a smaller one, or "
            "sweep.max_jobs=<as many as you want>"
        )


def jobs(config: DictConfig, enough: int) -> int:
    """How many there will be, counted no further for each key than to `enough`."""
    if "n_trials" in config.hydra.sweeper:
        return config.hydra.sweeper.n_trials
    discrete = [override for override in varied(config) if override.is_discrete_sweep()]
    return prod(sum(1 for _ in islice(o.sweep_iterator(), enough)) for o in discrete)


def quick_composer(loader: Any) -> Callable[[DictConfig, list[str]], DictConfig]:
    """The loader's `load_sweep_config`, for a thousand jobs that choose the same config files.

    Hydra reads and merges the files for each job, which takes a tenth of a second.
    """
    compose, composed = loader.load_sweep_config, {}

    def load_sweep_config(master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        overrides = parse(sweep_overrides)
        groups = [o for o in overrides if loader.repository.group_exists(o.key_or_group)]
        values = [o for o in overrides if o not in groups]
        key = tuple(override.input_line for override in groups)
        if key not in composed:
            composed[key] = compose(master_config, list(key))
        config = deepcopy(composed[key])
        loader._apply_overrides_to_config(values, config)
        config.hydra.overrides.task = sweep_overrides
        return config

    return load_sweep_config

"""What a sweep's command line may ask for: refused before a job is composed or a folder made."""

from collections import Counter
from importlib.util import find_spec
from itertools import islice
from math import prod
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from classic_cnns.errors import UserError

# Of Hydra's own keys those that say what a sweep does, and not what a job is.
NEEDS = {"ray": "ray", "slurm": "submitit"}  # choice of the group, and extra: package
OF_THE_SWEEP = ("hydra.sweep", "hydra/sweep", "hydra.launcher", "hydra/launcher", "hydra.mode")


def is_sweep_key(word: str) -> bool:
    return word.lstrip("+~").startswith(("sweep=", "sweep.", *OF_THE_SWEEP))


def grid_words(config: DictConfig) -> list[str]:
    """The command line without where and how the jobs run: what makes a sweep the same one."""
    return [word for word in config.hydra.overrides.task if not is_sweep_key(word)]


def varied_keys(config: DictConfig) -> list[str]:
    varied = [o.get_key_element().lstrip("+") for o in parse(config) if o.is_sweep_override()]
    return list(dict.fromkeys([*varied, *(config.hydra.sweeper.get("params") or {})]))


def parse(config: DictConfig) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))


def check(config: DictConfig) -> None:
    """Raise UserError for a grid that cannot be meant.

    `config` is the sweep's own, composed from all that it does not vary, with Hydra's part.
    """
    overrides = parse(config)
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
    sweep, count = config.sweep, job_count(config, overrides)
    if not grid_words(config) or count == 0:
        raise UserError("-m: the grid is empty; try -m 'seed=range(3)', or leave -m out")
    if type(sweep.max_jobs) is int and count > sweep.max_jobs:
        raise UserError(
            f"the grid has more than {sweep.max_jobs:,} jobs; try a smaller one, or "
            "sweep.max_jobs=<as many as you want>"
        )


def job_count(config: DictConfig, overrides: list[Override]) -> int:
    """How many jobs there will be; where they are more than `max_jobs`, a number above it."""
    sweeper: dict[str, Any] = OmegaConf.to_container(config.hydra.sweeper)  # type: ignore
    if "n_trials" in sweeper:
        return sweeper["n_trials"]
    texts = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    discrete = [o for o in overrides if o.is_discrete_sweep()]
    discrete += [
        o for o in OverridesParser.create().parse_overrides(texts) if o.is_discrete_sweep()
    ]
    limit = config.sweep.max_jobs + 1 if type(config.sweep.max_jobs) is int else None
    return prod(sum(1 for _ in islice(o.sweep_iterator(), limit)) for o in discrete)

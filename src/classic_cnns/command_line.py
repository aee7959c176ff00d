"""From the command line to a checked config: each mistake is one line on stderr, exit code 2.

Nothing here imports torch, which takes seconds: help and mistakes answer at once.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from classic_cnns import run_directory
from classic_cnns.allowed import check_values, leaves
from classic_cnns.errors import UserError

CONF = Path(__file__).parents[2] / "conf"


def command(config_name: str) -> Callable:
    """`hydra.main` on this project's conf/, with checked values and one line for each mistake."""

    def decorate(task: Callable[[DictConfig], object]) -> Callable[[], None]:
        @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
        def hydra_task(config: DictConfig) -> object:
            # Inside too, since Hydra adds lines of its own to an exception that leaves a task.
            with one_line_errors(config_name):
                overrides = HydraConfig.get().overrides.task
                groups = HydraConfig.get().runtime.choices
                choices = [text for text in overrides if parse(text).key_or_group in groups]
                check(config, hydra.compose(config_name, choices), overrides)
                return task(config)

        @functools.wraps(task)
        def run() -> None:
            with one_line_errors(config_name):
                hydra_task()

        return run

    return decorate


def parse(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def check(config: DictConfig, default: DictConfig, overrides: Sequence[str]) -> None:
    """Raise UserError for a key that no file has, or a value of a wrong kind or range.

    `default` is the config as its files state it, with the same choices of groups.
    """
    for text in overrides:
        override = parse(text)
        if override.is_delete():
            raise UserError(f"{text}: keys cannot be removed; some take null, as --cfg job shows")
        if override.is_add() and OmegaConf.select(default, override.key_or_group) is None:
            raise UserError(f"{text}: {unknown_key(override.key_or_group, default)}")
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from error
    check_values(values, OmegaConf.to_container(default, resolve=True))
    check_paths(config, overrides)


def check_paths(config: DictConfig, overrides: Sequence[str]) -> None:
    if config.data_dir:
        folder = Path(config.data_dir).expanduser().absolute()
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not there.is_dir() or (there != folder and not os.access(there, os.W_OK)):
            raise UserError(
                f"data_dir={config.data_dir}: cannot be made, since {there} is not a folder that "
                "you may write to; leave data_dir out to use your own cache"
            )
    if config.resume:
        others = [text for text in overrides if not text.startswith("resume=")]
        if others:
            raise UserError(
                f"{others[0]}: an earlier run goes on with its own config; try resume="
                f"{config.resume} alone, or a new run without resume"
            )
        run_directory.find(config.resume)


def unknown_key(key: str, default: DictConfig) -> str:
    known = [name for name, _ in leaves(OmegaConf.to_container(default))]
    groups = {name.split(".")[0] for name in known}
    near = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    near += get_close_matches(key, [*known, *groups], n=2)
    hint = (
        f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "--cfg job shows all keys"
    )
    return f"there is no key '{key}'; {hint}"


@contextmanager
def one_line_errors(config_name: str) -> Iterator[None]:
    """Print a user's mistake as one line and exit with 2; let our own bugs keep their traceback."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its exceptions on instead of printing them
    argparse.ArgumentParser.error = lambda _, message: fail(f"{message}; see --help")
    try:
        yield
    except UserError as error:
        fail(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain(error, config_name))


def fail(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def explain(error: Exception, config_name: str) -> str:
    """A composition error of Hydra in one line, with the nearest name that exists."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = error.options or []
        near = get_close_matches(name, options, n=1)
        hint = f"did you mean {group}={near[0]}? " if near else ""
        return f"{group}={name}: {hint}{group} is one of {', '.join(options) or 'null'}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value; quote values with special characters"
    if key := getattr(error.__cause__, "full_key", None):
        given = [text for text in sys.argv[1:] if "=" in text]
        choices = [text for text in given if (CONF / text.split("=")[0]).is_dir()]
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            hint = unknown_key(key, hydra.compose(config_name, choices))
        return next((f"{text}: " for text in given if text.startswith(f"{key}=")), "") + hint
    return " ".join(str(error).split())

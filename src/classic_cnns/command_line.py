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
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from classic_cnns import run_directory
from classic_cnns.allowed import check_values, leaves
from classic_cnns.devices import check_devices
from classic_cnns.errors import UserError

CONF = Path(__file__).parents[2] / "conf"


def command(config_name: str) -> Callable:
    """`hydra.main` on this project's conf/, with checked values and one line for each mistake.

    Hydra goes through the command line twice: first every job is checked, then each is run.
    """

    def decorate(task: Callable[[DictConfig], object]) -> Callable[[], None]:
        main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
        checked = []

        def check_job(config: DictConfig) -> None:
            checked.append(config)
            own = HydraConfig.get()
            overrides = list(plain(own.overrides.task))
            choices = [
                word for word in overrides if parse(word).key_or_group in own.runtime.choices
            ]
            check(config, hydra.compose(own.job.config_name, choices), overrides)

        @functools.wraps(task)
        def own_task(config: DictConfig) -> object:
            overrides = plain(HydraConfig.get().overrides.task)
            return task(run_directory.own_config(config, overrides))

        @functools.wraps(task)
        def run() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its exceptions on, prints none
            argparse.ArgumentParser.error = lambda _, line: fail(f"{line}; see --help")  # type: ignore
            try:
                with sweep_elsewhere():
                    main(one_line_errors()(check_job))()
            except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
                if checked:
                    raise  # a bug of ours
                fail(explain(error, config_name))
            if checked:  # not so after --cfg
                main(one_line_errors()(own_task))()

        return run

    return decorate


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a user's mistake as one line and exit with 2; let our own bugs keep their traceback.

    It goes around what Hydra calls, since Hydra adds lines to an exception but not to an exit.
    """
    try:
        yield
    except UserError as error:
        fail(str(error))


def fail(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def sweep_elsewhere() -> Iterator[None]:
    """Let Hydra make the directory of a sweep, which it does before any job, in a place to lose."""
    argv = sys.argv[:]
    if not {"-m", "--multirun"} & set(argv):
        yield
        return
    # Beside the other overrides, since argparse takes them only in one row.
    row = [i for i, word in enumerate(argv) if "=" in word and not word.startswith("-")]
    with TemporaryDirectory() as folder:
        sys.argv.insert(row[-1] + 1 if row else len(argv), f"hydra.sweep.dir={folder}")
        try:
            yield
        finally:
            sys.argv = argv


def plain(config: Any, resolve: bool = False) -> Any:
    return OmegaConf.to_container(config, resolve=resolve)


def parse(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def check(config: DictConfig, default: DictConfig, overrides: Sequence[str]) -> None:
    """Raise UserError for a key that no file has, or a value of a wrong kind or range.

    `default` is the config as its files state it, with the same choices of groups.
    """
    known = dict(leaves(plain(default), groups=True))
    for text in overrides:
        override = parse(text)
        if override.is_delete():
            raise UserError(f"{text}: keys cannot be removed; some take null, as --cfg job shows")
        key = override.get_key_element().lstrip("+")
        if (override.is_add() or override.is_force_add()) and key not in known:
            raise UserError(f"{text}: {unknown_key(key, default)}")
    raw = leaves(plain(config))
    copies = [key for key, value in raw if isinstance(value, str) and "${" in value]
    try:
        values = plain(config, resolve=True)
    except OmegaConfBaseException as error:
        given = [text for text in overrides if "${" in text]
        raise UserError(": ".join([*given[:1], one_line(error)])) from error
    check_values(values, plain(default, resolve=True), copies)
    check_paths(config, overrides)


def check_paths(config: DictConfig, overrides: Sequence[str]) -> None:
    for key in ("data_dir", "run_dir"):
        if config[key] is None:
            continue
        folder = Path(str(config[key])).expanduser().absolute()
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not there.is_dir() or (there != folder and not os.access(there, os.W_OK)):
            raise UserError(
                f"{key}={config[key]}: cannot be made, since {there} is not a folder that you may "
                f"write to; leave {key} out to use your own"
            )
    if config.resume is not None:
        free = ("resume=", "trainer=", *(f"trainer.{key}=" for key in run_directory.PLACEMENT))
        others = [text for text in overrides if not text.lstrip("+").startswith(free)]
        if others:
            raise UserError(
                f"{others[0]}: an earlier run goes on with its own config; try resume="
                f"{config.resume} alone, or a new run without resume"
            )
        check_devices(plain(run_directory.own_config(config, overrides)))


def unknown_key(key: str, default: DictConfig) -> str:
    known = [name for name, _ in leaves(plain(default)) if not name.startswith("hydra.")]
    groups = {name.split(".")[0] for name in known}
    near = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    near += get_close_matches(key, [*known, *groups], n=2)
    hint = (
        f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "--cfg job shows all keys"
    )
    return f"there is no key '{key}'; {hint}"


def explain(error: Exception, config_name: str) -> str:
    """An error of Hydra's before any job, in one line, with the nearest name that exists."""
    given = [word for word in sys.argv[1:] if "=" in word]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = error.options or ([] if group else [config_name])
        group = group or "--config-name"
        near = get_close_matches(name, options, n=1)
        hint = f"did you mean {group}={near[0]}? " if near else ""
        return f"{group}={name}: {hint}{group} is one of {', '.join(options) or 'null'}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value; quote values with special characters"
    if key := getattr(cause := error.__cause__, "full_key", None):
        found = cause.parent_node._get_root()  # type: ignore  # the config, as far as composed
        words = [word for word in given if word.lstrip("+").startswith(f"{key}=")]
        return ": ".join([*words[:1], unknown_key(key, found)])
    for word in given:  # Hydra does not say which choice of a group it stumbled over
        group, _, choice = word.partition("=")
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        if options and choice not in options:
            return f"{word}: " + (
                f"{group} is one of {', '.join(options)}" if group else "not of the form key=value"
            )
    return one_line(error)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())

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
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from classic_cnns import run_directory
from classic_cnns.allowed import check_values, leaves
from classic_cnns.errors import JobFailed, UserError

CONF = Path(__file__).parents[2] / "conf"
HOW_HYDRA_SWEEPS = ("hydra.sweep.", "hydra.launcher", "hydra/launcher", "hydra.mode")


def command(config_name: str) -> Callable:
    """`hydra.main` on this project's conf/, with checked values and one line for each mistake.

    Hydra goes through the command line twice: first it is checked, then run. A sweep ends in the
    first, since our launcher has each job checked, and carries it out as a command of its own.
    """

    def decorate(task: Callable[[DictConfig], object]) -> Callable[[], None]:
        main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
        checked = []
        sweeps = []  # directories
        compose = functools.cache(lambda name, *words: hydra.compose(name, list(words)))

        def check_job(config: DictConfig) -> None:
            checked.append(config)
            own = HydraConfig.get()
            overrides = list(plain(own.overrides.task))
            choices = [
                word for word in overrides if parse(word).key_or_group in own.runtime.choices
            ]
            check(config, compose(own.job.config_name, *choices), overrides)
            if own.mode == RunMode.MULTIRUN:
                sweeps.append(Path(str(config.sweep.dir)))
            elif of_sweep := [word for word in overrides if word.startswith("sweep")]:
                raise UserError(f"{of_sweep[0]}: is for a sweep, which -m starts; add -m")

        @functools.wraps(task)
        def run() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its exceptions on, prints none
            argparse.ArgumentParser.error = lambda _, line: fail(f"{line}; see --help")  # type: ignore
            for word in sys.argv[1:]:
                if word.lstrip("+~").startswith(HOW_HYDRA_SWEEPS):
                    fail(f"{word}: how a sweep is run is said by -m and by sweep.*; try sweep.dir=")
            try:
                with one_line_errors(), sweep_elsewhere():
                    main(one_line_errors()(check_job))()
            except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
                if checked:
                    raise  # a bug of ours
                fail(explain(error, config_name))
            except JobFailed:
                pass  # a sweeper that bears no failure has given up; the table tells
            if sweeps:
                from classic_cnns.report.results import end  # here, since a run has no table

                sys.exit(end(sweeps[0]))
            if checked:  # not so after --cfg
                main(one_line_errors()(task))()

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
    except KeyboardInterrupt:
        sys.exit(130)  # as shells have it


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
    for key in ("data_dir", "run_dir", "sweep.dir"):
        value = OmegaConf.select(config, key)
        if value is None:
            continue
        folder = Path(str(value)).expanduser().absolute()
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not there.is_dir() or (there != folder and not os.access(there, os.W_OK)):
            raise UserError(
                f"{key}={value}: cannot be made, since {there} is not a folder that you may "
                f"write to; leave {key} out to use your own"
            )
    if config.resume is not None:
        others = [text for text in overrides if not text.startswith("resume=")]
        if others:
            raise UserError(
                f"{others[0]}: an earlier run goes on with its own config; try resume="
                f"{config.resume} alone, or a new run without resume"
            )
        run_directory.find(config.resume)


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
        if (group, name) == ("hydra/sweeper", "optuna"):
            return "hydra/sweeper=optuna: needs an extra; try pip install -e '.[optuna]'"
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

"""The overrides of a command line, checked against the config's files, and what is wrong with them.

Nothing here imports torch.
"""

import os
from collections.abc import Sequence
from datetime import datetime
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from classic_cnns import run_directory
from classic_cnns.allowed import check_values, leaves
from classic_cnns.data import folders
from classic_cnns.devices import check_devices
from classic_cnns.errors import UserError

CONF = Path(__file__).parents[2] / "conf"
# Hydra's own `now` is another moment in each job of a sweep.
STARTED = f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
OmegaConf.register_new_resolver("started", lambda: STARTED, replace=True)

# Hydra makes a directory for a sweep, before any job: a place to lose, removed at exit.
lost = cache(TemporaryDirectory)
OmegaConf.register_new_resolver("lost", lambda: lost().name, replace=True)

# ${class_folders:root} in a config is the number of classes of an image folder.
OmegaConf.register_new_resolver(
    "class_folders", lambda root: len(folders.classes(root)), use_cache=True
)


def plain(config: Any, resolve: bool = False) -> Any:
    return OmegaConf.to_container(config, resolve=resolve)


def parse(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def check(config: DictConfig, default: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config of the run, resolved; with `resume` that of the earlier one on the devices named.

    `default` is the config as its files state it, with the same choices of groups. Raises UserError
    for a key that no file has, or a value of a wrong kind or range.
    """
    for text in overrides:
        if text.startswith("~"):
            raise UserError(f"{text}: keys cannot be removed; some take null, as --cfg job shows")
        key = text.partition("=")[0].lstrip("+")
        if text.startswith("+") and key not in dict(leaves(plain(default), groups=True)):
            raise UserError(f"{text}: {unknown_key(key, default)}")
    raw = leaves(plain(config))
    copies = [key for key, value in raw if isinstance(value, str) and "${" in value]
    if "root" in default.data:  # no file can know it
        default.data.root = config.data.root
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        told: BaseException | None = error
        while told and not isinstance(told, UserError):  # which OmegaConf hides below its own
            told = told.__cause__ or told.__context__
        if told:
            raise told from error
        given = [text for text in overrides if "${" in text]
        raise UserError(": ".join([*given[:1], one_line(error)])) from error
    check_values(plain(config), plain(default, resolve=True), copies)
    for key in ("data_dir", "run_dir", "sweep.dir"):
        check_folder(key, OmegaConf.select(config, key))
    if config.resume is None:
        return config
    free = ("resume=", "trainer=", *(f"trainer.{key}=" for key in run_directory.PLACEMENT))
    for text in overrides:
        if not text.lstrip("+").startswith(free):
            raise UserError(
                f"{text}: an earlier run goes on with its own config; try resume={config.resume} "
                "alone, or a new run without resume"
            )
    own = run_directory.own_config(config, overrides)
    check_devices(plain(own))
    return own


def check_folder(key: str, value: Any) -> None:
    """Raise UserError where `value`, unless it is None, is no folder that could be written to."""
    folder = Path(str(value or ".")).expanduser().absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or (there != folder and not os.access(there, os.W_OK)):
        raise UserError(
            f"{key}={value}: cannot be made, since {there} is not a folder that you may "
            f"write to; leave {key} out to use your own"
        )


def unknown_key(key: str, default: DictConfig) -> str:
    known = [name for name, _ in leaves(plain(default)) if not name.startswith("hydra.")]
    groups = {name.split(".")[0] for name in known}
    near = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    near += get_close_matches(key, [*known, *groups], n=2)
    hint = (
        f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "--cfg job shows all keys"
    )
    return f"there is no key '{key}'; {hint}"


def explain(error: Exception, config_name: str, words: Sequence[str]) -> str:
    """An error of Hydra's before any job, in one line, with the nearest name that exists."""
    given = [word for word in words if "=" in word]
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
        named = [word for word in given if word.lstrip("+").startswith(f"{key}=")]
        return ": ".join([*named[:1], unknown_key(key, found)])
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

"""Keys of config files that nothing uses, such as misspelt ones.

Overrides on the command line are checked one by one. Files may contain anything, and Hydra merges
all of it.
"""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from classic_cnns import UserError
from classic_cnns.config.schema import check_trainer_argument
from classic_cnns.files import flatten

# Arguments of classes, which check them themselves, and keys that are checked elsewhere.
OPEN = {
    "callbacks", "data", "logger", "model.input.channels", "model.loss", "model.net",
    "optim.optimizer", "optim.scheduler", "sweep.executor", "trainer",
}  # fmt: skip
HYDRA = (
    "Hydra's own keys have no effect here; run_dir= is the directory of a run, sweep.dir= that of "
    "a sweep"
)
WITHOUT_GROUP = ("debug", "experiment")  # their files set keys of other groups


@cache
def known_keys(conf: Path) -> tuple[set[str], set[str], dict[str, Any]]:
    """The keys that the program reads itself: single ones, and groups of them; and the Trainer."""
    files = {"": conf / "train.yaml", "sweep.": conf / "sweep" / "local.yaml"}
    single, groups = set[str](), {"sweep"}
    for prefix, path in files.items():
        values: Any = OmegaConf.to_container(OmegaConf.load(path))
        for key, value in flatten(values, prefix, groups=True):
            (groups if value and isinstance(value, dict) else single).add(key)
    trainer: Any = OmegaConf.load(conf / "trainer" / "default.yaml")
    return single, groups, trainer


def references(text: str) -> set[str]:
    """The keys in interpolations, such as optim.lr in ${optim.lr}."""
    within = re.findall(r"\$\{([^}]*)", text)
    return {name for part in within for name in re.findall(r"[\w.]+", part)}


def check_used(
    config: dict[str, Any], conf: Path, files: Sequence[Path], named: Iterable[str]
) -> None:
    """Raise UserError for the first key that has no effect.

    `config` has unresolved interpolations, `conf` is the folder of our own configs, and `files` are
    those that were chosen, one of which probably contains the key. `named` are keys that any file
    interpolates: a recipe's key may be unused after a change of its scheduler, say.
    """
    single, groups, ours = known_keys(conf)
    single = single | OPEN | ({"model"} if "_target_" in config["model"] else set())
    names = set(named) | references(str(config))
    keys = [key for key, _ in flatten(config)]
    used = [key for key in keys if is_used(key, single, groups, names)]
    for key in (key for key in keys if key not in used):
        if key.partition(".")[0] in WITHOUT_GROUP:
            way_out = "write '# @package _global_' into the first line of the file"
        elif near := get_close_matches(key, used, n=1):
            way_out = f"did you mean {near[0]}?"
        else:
            way_out = f"remove it, or use it somewhere as ${{{key}}}"
        raise UserError(
            f"{file_with(key, files)}: {key}: has no effect, since nothing uses it; {way_out}"
        )
    lightnings = config["trainer"].get("_target_") == ours["_target_"]
    for name in config["trainer"].keys() - set(ours) if lightnings else ():
        check_trainer_argument(f"{file_with(name, files)}: trainer.{name}", name, added=True)


def is_used(key: str, single: set[str], groups: set[str], names: Iterable[str]) -> bool:
    """Whether the program, a class or an interpolation uses a key."""
    parts = key.split(".")
    prefixes = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    if prefixes & single:
        return True
    return any(
        name.startswith(f"{key}.") or name in prefixes - groups  # or of a node around it
        for name in names
    ) or any(name.startswith(".") and f".{key}".endswith(f".{name.strip('.')}") for name in names)


def check_no_hydra(paths: Iterable[Path]) -> None:
    for path in paths:
        if re.search("^hydra:", read_text(path), re.M):
            raise UserError(f"{path}: hydra: {HYDRA}")


def file_with(key: str, files: Sequence[Path]) -> Path | str:
    """The first file that sets a key of this name."""
    last = re.escape(key.rpartition(".")[2])
    found = (path for path in files if re.search(rf"^\s*{last}\s*:", read_text(path), re.M))
    return next(found, "a config file")


def read_text(path: Path) -> str:
    """The text of a file; empty if it cannot be read, which is an error if Hydra reads it."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

"""Configs of earlier runs: finding, reading, upgrading, and changing them when resuming."""

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from classic_cnns import UserError, assignment, one_line, program
from classic_cnns.config.trust import check_stored, untrusted_packages
from classic_cnns.files import BEST, LAST, expand, newest_checkpoint, read_yaml, used_checkpoint

OUTPUTS = Path("outputs")
OF_SWEEP = {".lock", "output.log", "submitit"}  # its files in a job's directory
PLACEMENT = ("accelerator", "devices", "num_nodes", "strategy")  # keys of trainer
LIMITS = ("max_steps", "max_time")  # besides max_epochs
# What a command may change when it resumes a run; the data may have moved.
CHANGEABLE = {"resume", "data_dir", "data.root", "trainer"}
CHANGEABLE |= {f"trainer.{key}" for key in (*PLACEMENT, "max_epochs", *LIMITS)}


def keeps_nothing(config: DictConfig) -> bool:
    """Whether a run's directory is temporary."""
    fast = config.trainer.get("fast_dev_run")
    return bool(config.keep is False or config.get("estimate") or fast)


def resolve_latest(path: Any) -> Path:
    """The path with `latest` replaced by the run named in the `latest.txt` next to it, and ~."""
    path = expand("path", path)
    for part in (path, *path.parents):
        if part.name != "latest" or part.is_dir():
            continue
        notes = part.with_name("latest.txt"), part  # `latest` in 0.1
        if note := next(filter(Path.is_file, notes), None):
            name = note.read_text(errors="replace").strip()
            if Path("_", name).name != name:
                raise UserError(
                    f"{note}: does not name a run next to it; write the name of one into it"
                )
            return part.with_name(name) / path.relative_to(part)
    return path


def find_run(path: Any, key: str = "resume=") -> Path:
    """The directory of an earlier run; `path` may end with `latest`. UserError if there is none."""
    directory = resolve_latest(path)
    if not (directory / "config.yaml").is_file():
        notes = [note.with_name("latest") for note in sorted(OUTPUTS.glob("*/latest.txt"))]
        known = [note for note in notes if (resolve_latest(note) / "config.yaml").is_file()]
        if directory.name != Path(path).name:  # the run that `latest` names was deleted
            rest = sorted(directory.parent.glob("[0-9]*/config.yaml"), reverse=True)
            known = [config.parent for config in rest] + known
        hint = f"try {key}{known[0]}" if known else "no run is in outputs/ yet"
        around = [parent for parent in directory.parents if (parent / "config.yaml").is_file()]
        if around and directory.exists():  # a file of a run
            hint = f"try {key}{around[0]}"
        raise UserError(f"{key}{path}: no run is there (it would have a config.yaml); {hint}")
    return directory


def find_checkpoint(path: Any, key: str = "init_from=") -> Path:
    """The checkpoint file at `path`, or the best one of the run at `path`."""
    named = resolve_latest(path)
    if named.is_file():
        return named
    run = find_run(path, key)
    if found := used_checkpoint(run):
        return found
    if newest := newest_checkpoint(run):
        word = assignment(key[:-1], newest) if key else str(newest)
        raise UserError(f"{key}{path}: has no {BEST} and no {LAST}; try {shlex.quote(word)}")
    raise UserError(f"{key}{path}: that run has written no checkpoint yet; try another one")


def resume_command(directory: Path, config: DictConfig) -> str:
    """The command that continues a run, for a shell."""
    trust = (f"--trust {package}" for package in untrusted_packages(stored_values(config)))
    return " ".join([program(), shlex.quote(assignment("resume", directory)), *trust])


def stored_values(config: DictConfig) -> dict[str, Any]:
    """The resolved config without `sweep` and `resume`, as it is stored with a run."""
    values: Any = OmegaConf.to_container(config, resolve=True)
    return {key: value for key, value in values.items() if key != "sweep"} | {"resume": None}


def check_new(directory: Path) -> None:
    """Raise UserError if `directory` cannot become a run directory because it is in use."""
    if not directory.is_dir():
        return
    if (directory / "config.yaml").exists():
        word = shlex.quote(assignment("resume", directory))
        raise UserError(
            f"run_dir={directory}: already contains a run; try {word} to continue it, or another "
            "run_dir"
        )
    # An earlier start of the job may have left a result.
    names = {path.name for path in directory.iterdir()} - OF_SWEEP - {"result.json"}
    if any(not re.fullmatch(r"\..+\.\d+", name) for name in names):  # not files cut off by a kill
        raise UserError(
            f"run_dir={directory}: must be new or empty, and contains other files; "
            f"try run_dir={directory / 'run'}"
        )


def read_config(path: Path, trusted: Sequence[str] = ()) -> DictConfig:
    """A run's `config.yaml`; UserError if it cannot be read or names untrusted code."""
    try:
        values = OmegaConf.to_container(OmegaConf.create(read_yaml(path)), resolve=False)
    except Exception as error:  # a file from elsewhere can contain anything
        line = one_line(error)[:200]
        raise UserError(f"{path}: is not the config of a run ({line}); try another run") from error
    return checked_config(values, path, trusted)


def checked_config(values: Any, place: Any, trusted: Sequence[str] = ()) -> DictConfig:
    """A stored config after the checks of `trust`; nothing in it is resolved or imported.

    `place` is the file it comes from.
    """
    groups = ("model", "data", "optim", "trainer")
    if not isinstance(values, dict) or any(type(values.get(name)) is not dict for name in groups):
        raise UserError(f"{place}: is not the config of a run (it lacks groups); try another run")
    values = {name: value for name, value in values.items() if name != "sweep"}  # not of a run
    check_stored(values, place, trusted)
    return OmegaConf.create(values)


@contextmanager
def config_errors(place: Any) -> Iterator[None]:
    """Turn errors caused by unexpected values in a stored config into a UserError."""
    try:
        yield
    except (AttributeError, LookupError, OmegaConfBaseException, TypeError, ValueError) as error:
        line = one_line(error)[:200]
        raise UserError(f"{place}: has an invalid config ({line})") from error


def upgraded_config(own: DictConfig, today: DictConfig) -> DictConfig:
    """Upgrade a config of version 0.1; `today` is a config of the current version.

    Version 0.1 had no config groups for callbacks, loggers and the Trainer's class.
    """
    strategies = {
        "ddp": "auto",
        "two_towers": {"_target_": "classic_cnns.trainer.two_towers.TwoTowers"},
    }
    own.trainer = OmegaConf.merge(today.trainer, own.trainer)
    own.trainer.strategy = strategies[own.trainer.strategy]
    own.trainer.gradient_clip_val = own.optim.clip_norm
    own.optim.schedule_epochs = own.trainer.max_epochs
    new = ("callbacks", "logger", "init_from", "init_skip", "top5_error", "config_dirs", "keep")
    for key in new:
        own[key] = today[key]
    return own

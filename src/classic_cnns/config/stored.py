"""The config of an earlier run: where it is, what it means today, and what may differ now.

Nothing here imports torch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from classic_cnns import UserError
from classic_cnns.config.trust import check_stored
from classic_cnns.files import read_json, read_yaml

OUTPUTS = Path("outputs")
# What a sweep has put into the directory of a job before it starts, or an earlier start of it.
OF_A_JOB = {".lock", "output.log", "result.json", "submitit"}
# Keys of trainer that may differ when a run goes on: where it runs, and how long.
PLACEMENT = ("accelerator", "devices", "num_nodes", "strategy")
LONGER = ("max_epochs",)


def resolve_latest(path: Any) -> Path:
    """The path, in which `latest` stands for the newest run that `latest.txt` beside it names."""
    path = Path(str(path))
    for part in (path, *path.parents):
        if part.name != "latest" or part.is_dir():
            continue
        note = part if part.is_file() else part.with_name("latest.txt")  # `latest` until 0.1
        if note.is_file():
            name = note.read_text(errors="replace").strip()
            if Path(name).name != name:
                raise UserError(f"{note}: names no run beside it; write the name of one into it")
            return part.with_name(name) / path.relative_to(part)
    return path


def find_run(path: Any, key: str = "resume=") -> Path:
    """The directory of an earlier run, also by way of `latest`; UserError where there is none."""
    directory = resolve_latest(path)
    if not (directory / "config.yaml").is_file():
        notes = sorted(OUTPUTS.glob("*/latest.txt"))
        hint = f"try {key}{notes[0].with_name('latest')}" if notes else "no run is in outputs/ yet"
        raise UserError(f"{key}{path}: no run is there (it would have a config.yaml); {hint}")
    return directory


def find_checkpoint(path: Any, key: str = "init_from=") -> Path:
    """The checkpoint that `path` names: a file, or the best one of a run."""
    named = resolve_latest(path)
    if named.is_file():
        return named
    folder = find_run(path, key) / "checkpoints"
    for name in ("best.ckpt", "last.ckpt"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{key}{path}: that run has written no checkpoint yet; try another one")


def kept(config: DictConfig) -> dict[str, Any]:
    """What a run keeps of its config, resolved: all that another start of it needs."""
    values: Any = OmegaConf.to_container(config, resolve=True)
    return {key: value for key, value in values.items() if key != "sweep"} | {"resume": None}


def check_new(directory: Path) -> None:
    """Raise UserError where a run cannot have the directory for itself."""
    if not directory.is_dir():
        return
    if (directory / "config.yaml").exists():
        raise UserError(
            f"run_dir={directory}: holds a run already; try resume={directory} to go on with "
            "it, or another run_dir"
        )
    if {path.name for path in directory.iterdir()} - OF_A_JOB:
        raise UserError(
            f"run_dir={directory}: must be a new or an empty folder and holds other things; "
            f"try run_dir={directory / 'run'}"
        )


def read_config(path: Path, trusted: Sequence[str] = (), folders: Sequence[str] = ()) -> DictConfig:
    """A run's `config.yaml`; UserError where it cannot be read or names unknown code."""
    try:
        values = read_yaml(path)
    except Exception as error:  # a file from elsewhere holds anything
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is no config of a run ({line}); try another run") from error
    return checked(values, path, trusted, folders)


def checked(
    values: Any, place: Any, trusted: Sequence[str] = (), folders: Sequence[str] = ()
) -> DictConfig:
    """A stored config, of which nothing has been looked up or imported; `place` is its file."""
    groups = ("model", "data", "optim", "trainer")
    if not isinstance(values, dict) or any(type(values.get(name)) is not dict for name in groups):
        raise UserError(f"{place}: is no config of a run (it lacks groups); try another run")
    values = {name: value for name, value in values.items() if name != "sweep"}  # none is of a run
    check_stored(values, place, trusted, folders)
    return OmegaConf.create(values)


@contextmanager
def of_a_run(place: Any) -> Iterator[None]:
    """Tell in one line where a stored config has values that no run of ours would write."""
    try:
        yield
    except (
        AttributeError,
        IndexError,
        KeyError,
        OmegaConfBaseException,
        TypeError,
        ValueError,
    ) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{place}: has no config that a run would write ({line})") from error


def resumed(
    config: DictConfig, words: Sequence[str], trusted: Sequence[str], folders: Sequence[str]
) -> DictConfig:
    """The config of the run `config.resume`, on the devices and up to the epoch that words name.

    `config` is composed from those words, as if for a new run; `trusted` and `folders` are as in
    `check_stored`. Raises UserError for other words.
    """
    named = {word.lstrip("+").partition("=")[0]: word for word in words}
    free = {"resume", "trainer", *(f"trainer.{key}" for key in (*PLACEMENT, *LONGER))}
    for key, word in named.items():
        if key not in free:
            raise UserError(
                f"{word}: an earlier run goes on with its own config; try resume={config.resume} "
                "alone, or a new run without resume"
            )
    own = updated(read_config(find_run(config.resume) / "config.yaml", trusted, folders), config)
    for key in (*PLACEMENT, *LONGER):
        if f"trainer.{key}" in named or (key in PLACEMENT and "trainer" in named):
            own.trainer[key] = config.trainer[key]
    if "trainer.max_epochs" in named:
        check_epochs(own, config)
    own.resume = config.resume
    return own


def check_epochs(own: DictConfig, config: DictConfig) -> None:
    """Raise UserError where the run has done more epochs already than it is to do."""
    result = read_json(find_run(config.resume) / "result.json") or {}
    done, wanted = result.get("epochs", 0), own.trainer.max_epochs
    if wanted != -1 and wanted < done:
        raise UserError(
            f"trainer.max_epochs={wanted}: {config.resume} has done {done} epochs already; "
            f"try trainer.max_epochs={2 * done}"
        )


def updated(own: DictConfig, today: DictConfig) -> DictConfig:
    """A config of version 0.1 in today's keys; `today` is a config of the present version.

    Until 0.1 the callbacks, the logger and the Trainer's class stood in the code.
    """
    if "callbacks" in own:
        return own
    strategies = {
        "ddp": "auto",
        "two_towers": {"_target_": "classic_cnns.trainer.two_towers.TwoTowers"},
    }
    trainer = OmegaConf.create(
        {
            **OmegaConf.to_container(today.trainer),  # type: ignore[dict-item]
            **OmegaConf.to_container(own.trainer),  # type: ignore[dict-item]
            "strategy": strategies[own.trainer.strategy],
            "gradient_clip_val": own.optim.clip_norm,
        }
    )
    own.trainer, own.callbacks, own.logger = trainer, today.callbacks, today.logger
    own.optim.schedule_epochs = own.trainer.max_epochs
    for key in ("init_from", "init_skip", "top5_error", "config_dirs", "keep"):
        own[key] = today[key]
    return own

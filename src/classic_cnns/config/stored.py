"""The config of an earlier run: where it is, what it means today, and what may differ now.

Nothing here imports torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from classic_cnns import UserError

OUTPUTS = Path("outputs")
# Keys of trainer that may differ when a run goes on: where it runs, and how long.
PLACEMENT = ("accelerator", "devices", "num_nodes", "strategy")
LONGER = ("max_epochs",)


def resolve_latest(path: Path) -> Path:
    """The directory that `path` is, or that the file `latest` names."""
    if path.is_file() and path.name == "latest":
        return path.with_name(path.read_text().strip())
    return path


def find_run(path: Any, key: str = "resume") -> Path:
    """The directory of an earlier run, also by way of `latest`; UserError where there is none."""
    directory = resolve_latest(Path(str(path)))
    if not (directory / "config.yaml").is_file():
        runs = sorted(OUTPUTS.glob("*/latest"))
        hint = f"try {key}={runs[0]}" if runs else "no run has been started here yet"
        raise UserError(f"{key}={path}: no run is there (it would have a config.yaml); {hint}")
    return directory


def find_checkpoint(path: Any) -> Path:
    """The checkpoint that `init_from` names: a file, or the best one of a run."""
    named = resolve_latest(Path(str(path)))
    if named.is_file():
        return named
    folder = find_run(path, "init_from") / "checkpoints"
    for name in ("best.ckpt", "last.ckpt"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"init_from={path}: that run has written no checkpoint yet; try another one")


def read_config(directory: Path) -> DictConfig:
    """The config of a run, resolved; UserError where the file cannot be read."""
    path = directory / "config.yaml"
    try:
        config = OmegaConf.load(path)
        OmegaConf.resolve(config)
        assert isinstance(config, DictConfig) and "model" in config and "trainer" in config
    except Exception as error:  # a file from elsewhere holds anything
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is no config of a run ({line}); try another run") from error
    return config


def resumed(config: DictConfig, words: Sequence[str]) -> DictConfig:
    """The config of the run `config.resume`, on the devices and up to the epoch that words name.

    `config` is composed from those words, as if for a new run. Raises UserError for other words.
    """
    named = {word.lstrip("+").partition("=")[0]: word for word in words}
    free = {"resume", "trainer", *(f"trainer.{key}" for key in (*PLACEMENT, *LONGER))}
    for key, word in named.items():
        if key not in free:
            raise UserError(
                f"{word}: an earlier run goes on with its own config; try resume={config.resume} "
                "alone, or a new run without resume"
            )
    own = updated(read_config(find_run(config.resume)), config)
    for key in (*PLACEMENT, *LONGER):
        if f"trainer.{key}" in named or (key in PLACEMENT and "trainer" in named):
            own.trainer[key] = config.trainer[key]
    if "trainer.max_epochs" in named:
        check_epochs(own, config)
    own.resume = config.resume
    return own


def check_epochs(own: DictConfig, config: DictConfig) -> None:
    """Raise UserError where the run has done more epochs already than it is to do."""
    from classic_cnns.files import read_json

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

"""What was trained, to be used: from a run, a checkpoint or `latest` to its net."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from classic_cnns import UserError
from classic_cnns.classifier import Classifier
from classic_cnns.config.compose import Composer, add_to_path, groups_in
from classic_cnns.config.stored import checked, find_checkpoint, of_a_run, read_config, updated
from classic_cnns.run.build import build_data
from classic_cnns.trainer.checkpoint_io import read_checkpoint


def load(path: Any, trust: Sequence[str] = ()) -> Classifier:
    """The net of a run, a checkpoint or `.../latest`: a module in eval mode, on the CPU.

    It has `preprocess(pictures)`, `predict(pictures)`, `probabilities(pictures)` and `classes`. A
    config that comes with it may name code of this project, of torch, of Lightning and of the
    packages in `trust`. Raises UserError for what is no run of one of our nets.
    """
    checkpoint = find_checkpoint(path, "")
    config = config_of(checkpoint, trust)
    if "net" not in config.model:
        raise UserError(
            f"{path}: is a LightningModule of somebody's own; its load_from_checkpoint() loads it"
        )
    with of_a_run(path):
        module = Classifier.load_from_checkpoint(checkpoint, config=config)
        if module.preprocessing is None and "input" in config.data:  # a checkpoint of before
            module.preprocessing = preprocessing_of(config)
    return module


def config_of(checkpoint: Path, trust: Sequence[str] = ()) -> DictConfig:
    """The config that a checkpoint holds, or for one of before that lies beside it."""
    stored = read_checkpoint(checkpoint).get("hyper_parameters") or {}
    beside = checkpoint.absolute().parents[1]
    if "trainer" in stored or not (beside / "config.yaml").is_file():
        config = checked(stored, checkpoint, trust)
    else:
        with of_a_run(beside):
            config = updated(read_config(beside, trust), Composer().read_files(()))
    if trust:
        folders = config.get("config_dirs") or []
        add_to_path([str(place) for folder in folders for place in (folder, *groups_in(folder))])
    return config


def preprocessing_of(config: DictConfig) -> Any:
    """As the config describes it; where a mean image is subtracted, the training set has it."""
    data: Any = build_data(config)
    if config.data.input.get("subtract_mean"):
        data.prepare_data()
        data.setup("fit")
    return data.preprocessing

"""Loading a trained net from a run, a checkpoint or `latest`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from classic_cnns import UserError
from classic_cnns.classifier import Classifier, other_classes
from classic_cnns.config.compose import Composer
from classic_cnns.config.stored import config_errors
from classic_cnns.run.build import build_data
from classic_cnns.trainer.spinning import limit_spinning


def load(path: Any, trust: Sequence[str] = ()) -> Classifier:
    """The net of a run, a checkpoint or `.../latest`: a module in eval mode, on the CPU.

    It has `preprocess(pictures)`, `predict(pictures)`, `probabilities(pictures)` and `classes`. Its
    stored config may use code of this project, of torch, of Lightning and of the packages in
    `trust`. Raises UserError if `path` is not a run of one of our nets.
    """
    limit_spinning()
    checkpoint, config = Composer(trusted=trust).load_run(path)
    return load_net(checkpoint, config)


def load_net(checkpoint: Path, config: DictConfig) -> Classifier:
    """The net of a checkpoint in eval mode, built from the config of its run."""
    if "net" not in config.model or "_target_" in config.model:
        raise UserError(
            f"{checkpoint}: belongs to another LightningModule; use the "
            "load_from_checkpoint() of its class"
        )
    with config_errors(checkpoint):
        module = Classifier.load_from_checkpoint(checkpoint, config=config)
        if module.preprocessing is None and "input" in config.data:  # a checkpoint of version 0.1
            module.preprocessing = preprocessing_of(config)
    return module


def data_of(config: DictConfig, net: Classifier) -> Any:
    """The data module of a run, with the preprocessing that the checkpoint contains.

    Raises UserError if folders of classes were added, removed or renamed since.
    """
    data: Any = build_data(config)
    data.preprocessing, data.has_statistics = net.prepared, True
    classes = net.classes
    try:
        data.prepare_data()
    finally:  # folders may have other names by now, which are not the net's
        has, net.prepared.classes = net.classes, classes
    if other := other_classes(has, classes):
        raise UserError(f"{other}; restore the folders")
    data.setup("test")
    return data


def preprocessing_of(config: DictConfig) -> Any:
    """The preprocessing from the config; a mean image is computed from the training set."""
    data: Any = build_data(config)
    if config.data.input.get("subtract_mean"):
        data.prepare_data()
        data.setup("fit")
    return data.preprocessing

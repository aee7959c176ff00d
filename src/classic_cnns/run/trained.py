"""What was trained, to be used: from a run, a checkpoint or `latest` to its net."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from classic_cnns import UserError
from classic_cnns.classifier import Classifier
from classic_cnns.config.compose import Composer
from classic_cnns.config.stored import of_a_run
from classic_cnns.run.build import build_data


def load(path: Any, trust: Sequence[str] = ()) -> Classifier:
    """The net of a run, a checkpoint or `.../latest`: a module in eval mode, on the CPU.

    It has `preprocess(pictures)`, `predict(pictures)`, `probabilities(pictures)` and `classes`. A
    config that comes with it may name code of this project, of torch, of Lightning and of the
    packages in `trust`. Raises UserError for what is no run of one of our nets.
    """
    checkpoint, config = Composer(trusted=trust).of_run(path)
    return load_net(checkpoint, config)


def load_net(checkpoint: Path, config: DictConfig) -> Classifier:
    """The net of a checkpoint, with the config of its run, in eval mode."""
    if "net" not in config.model:
        raise UserError(
            f"{checkpoint}: is of a LightningModule of somebody's own; its own "
            "load_from_checkpoint() loads it"
        )
    with of_a_run(checkpoint):
        module = Classifier.load_from_checkpoint(checkpoint, config=config)
        if module.preprocessing is None and "input" in config.data:  # a checkpoint of before
            module.preprocessing = preprocessing_of(config)
    return module


def data_of(config: DictConfig, net: Classifier) -> Any:
    """The data of a run as its net sees them: nothing is measured on training images again."""
    data: Any = build_data(config)
    data.preprocessing, data.fitted = net.prepared, True
    data.prepare_data()
    data.setup("test")
    return data


def preprocessing_of(config: DictConfig) -> Any:
    """As the config describes it; where a mean image is subtracted, the training set has it."""
    data: Any = build_data(config)
    if config.data.input.get("subtract_mean"):
        data.prepare_data()
        data.setup("fit")
    return data.preprocessing

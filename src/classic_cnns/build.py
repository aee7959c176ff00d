"""From a config to the objects that it describes, or to one line on why they cannot be."""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from classic_cnns.classifier import Classifier
from classic_cnns.errors import UserError
from classic_cnns.optim.levenberg_marquardt import StochasticDiagonalLM
from classic_cnns.report import summary


def build(config: DictConfig) -> tuple[Classifier, pl.LightningDataModule]:
    """The objects that the config describes; the initial weights follow from its seed."""
    torch.manual_seed(config.seed)
    with refused("model.net"):
        net = instantiate(config.model.net)
        summary.layers(net, example(config))  # whether images of this size go through it
    with refused("model.loss"):
        loss = instantiate(config.model.loss)
    with refused("optim"):
        optimizer = instantiate(config.optim.optimizer)
        scheduler = instantiate(config.optim.scheduler)
        tried = optimizer(net.named_parameters())
        if isinstance(tried, StochasticDiagonalLM) and not hasattr(net, "features"):
            raise ValueError(
                "optim.optimizer: stochastic diagonal Levenberg-Marquardt is for the RBF units of "
                "LeNet-5 alone; try model=lenet5, or another optim"
            )
        if scheduler:
            scheduler(tried, total_steps=1000)
    with refused("data"):
        return Classifier(net, loss, optimizer, scheduler, config.seed), instantiate(config.data)


def example(config: DictConfig) -> torch.Tensor:
    """One image as the net gets it, all zeros."""
    side = config.model.input.size
    return torch.zeros(1, config.data.channels, side, side)


@contextmanager
def refused(key: str) -> Iterator[None]:
    """Tell in one line that what `key` describes cannot be built; the values are the user's."""
    try:
        yield
    except (InstantiationException, RuntimeError, TypeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(cause, (ImportError, RuntimeError, TypeError, ValueError)):
            raise
        line = " ".join(str(cause).split())
        own = line.startswith(("model.", "optim.", "data."))  # says what is allowed
        way_out = f"; leave the keys of {key.split('.')[0]} out to use those of its file"
        raise UserError(line if own else f"{key}: {line}{way_out}") from error

"""Net, loss and optimizer of every recipe in `conf`, for tests of single steps."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

CONF = Path(__file__).parents[1] / "conf"
DIGITS = ("lenet1", "lenet4", "lenet5", "mlp", "simple_cnn")
SEARCH = "search_lenet5"  # a sweep with the recipe of another experiment

MODELS = sorted(path.stem for path in CONF.glob("model/*.yaml"))
EXPERIMENTS = sorted(
    name for path in CONF.glob("experiment/*.yaml")
    if (name := path.stem) != SEARCH and not name.startswith(("claim_", "record_"))
)  # fmt: skip
# Each model with its own optimizer, and each experiment; new files are included.
RECIPES = [f"model={name}" for name in MODELS] + [f"experiment={name}" for name in EXPERIMENTS]
# Choices that are in no recipe: batch normalisation and other losses.
VARIANTS = [
    "model=simple_cnn model.net.norm=batch",
    "model=convnet_cifar10 model.net.norm=batch",
    "model=lenet5 model.loss.j=null",
    "model=lenet5_relu model.loss._target_=classic_cnns.model.lenet5_relu.SquaredErrorOneHot",
]


class Recipe(NamedTuple):
    net: nn.Module
    loss: nn.Module
    make_optimizer: Any  # called with net.named_parameters()
    shape: tuple[int, int, int]  # of an image (C, H, W)
    pixels: tuple[float, float]  # their range, around 0 if the mean is subtracted


@cache
def composed(*words: str) -> DictConfig:
    """The config that Hydra alone composes from overrides; cached, so callers copy it."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", [*words, "name=x"])


def compose(words: str) -> DictConfig:
    """The config of overrides that begin with one of RECIPES, for MNIST or CIFAR-10."""
    name = words.split()[0].partition("=")[2]
    dataset = "mnist" if name.startswith(DIGITS) else "cifar10"
    return deepcopy(composed(*words.split(), f"data={dataset}"))


def recipe(words: str) -> Recipe:
    """The parts that one of RECIPES or VARIANTS configures, for ten classes."""
    config = compose(words)
    net, loss = instantiate(config.model.net), instantiate(config.model.loss)
    given = config.model.input
    shape = (config.data.channels, given.size, given.size)
    middle = (given.low + given.high) / 2 if given.subtract_mean else 0
    pixels = (given.low - middle, given.high - middle)
    return Recipe(net, loss, instantiate(config.optim.optimizer), shape, pixels)

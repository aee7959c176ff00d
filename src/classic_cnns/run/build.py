"""Builds the objects that a config describes; what cannot be built is a one-line error."""

import inspect
import logging
import random
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig

from classic_cnns import UserError, one_line
from classic_cnns.classifier import Classifier, eval_mode, takes_total_steps
from classic_cnns.config.schema import trainer_arguments
from classic_cnns.config.stored import find_checkpoint, stored_values
from classic_cnns.trainer import devices
from classic_cnns.trainer.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from classic_cnns.trainer.lightning_internals import NoProfiler
from classic_cnns.trainer.spinning import limit_spinning

log = logging.getLogger(__name__)

NET_KEYS = ("precision", "loss", "input")  # keys of model that only nets of this project use


def build(
    config: DictConfig, resumed: bool = False
) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """The module and the data module of a config; initial weights depend only on its seed.

    They are those of `init_from`, if it is given, unless a checkpoint of a resumed run follows.
    Raises UserError for parts that cannot be built.
    """
    limit_spinning()  # commands have called it before, notebooks have not
    data = build_data(config)
    torch.manual_seed(config.seed)
    np.random.seed(config.seed % 2**32)  # for modules and data of the user's own
    random.seed(config.seed)
    module = build_module(config) if "_target_" in config.model else build_classifier(config, data)
    if config.init_from is not None and not resumed:
        load_initial_weights(module, config.init_from, list(config.init_skip))
    return module, data


def build_part(key: str, node: Any, kind: type, **optional: Any) -> Any:
    """The object that `node`, at `key` of the config, describes.

    `optional` arguments are those that its class may lack, or have a default for. Raises UserError
    if it cannot be built or is not of class `kind`.
    """
    target = node.get("_target_")
    with build_errors(key):
        wanted = inspect.signature(get_class(target)).parameters if optional else {}
        none = inspect.Parameter.empty, None  # a logger's default is another place
        own = {
            k: v
            for k, v in optional.items()
            if k in wanted and k not in node and (wanted[k].default in none or kind is Logger)
        }
        part = instantiate(node, **own, _convert_="all")
    if not isinstance(part, kind):
        other = "; a net that is an nn.Module goes to model.net._target_" * (key == "model")
        raise UserError(f"{key}._target_={target}: is no {kind.__name__} of Lightning{other}")
    return part


def build_data(config: DictConfig) -> pl.LightningDataModule:
    return build_part("data", config.data, pl.LightningDataModule)


def build_module(config: DictConfig) -> pl.LightningModule:
    """A LightningModule of the user's own, with its own optimizers and metrics."""
    own = {k: v for k, v in config.model.items() if k not in NET_KEYS}
    ours = {k: v for k, v in config.model.items() if k in NET_KEYS}
    module = build_part("model", own, pl.LightningModule, **ours)
    for hook in ("training_step", "configure_optimizers"):
        if not is_overridden(hook, module):
            raise UserError(f"model._target_={config.model._target_}: has no {hook}()")
    return module


def build_classifier(config: DictConfig, data: pl.LightningDataModule) -> Classifier:
    for key in ("model.net", "optim.optimizer"):
        group, name = key.split(".")
        if name not in config[group]:
            raise UserError(
                f"{key}: is missing; conf/{group}/ has examples, "
                f"{'and' if group == 'model' else 'or'} {group}=<another> chooses one of them"
            )
    with build_errors("model.net"):
        net = instantiate(config.model.net)
        images = example_input(config, data)
        scores = check_scores(config, net, images)
    with build_errors("model.loss"):
        loss = instantiate(config.model.loss)
        if not isinstance(loss, torch.nn.Module):
            raise TypeError("has to be an nn.Module, such as a class that calls your function")
        labels = torch.zeros(len(scores), dtype=torch.long)
        if deepcopy(loss)(scores, labels).dim():  # a copy, since a loss may count its calls
            raise ValueError("gives a value for each image, and not one number for a batch")
    with build_errors("optim"):
        optimizer = instantiate(config.optim.optimizer)
        scheduler = instantiate(config.optim.scheduler)
        tried = optimizer(net.named_parameters())
        if scheduler:
            per_step = takes_total_steps(scheduler)
            scheduler(tried, **{"total_steps": 1000} if per_step else {})
            if config.optim.schedule_epochs == -1 and per_step:
                raise ValueError(
                    "optim.schedule_epochs=-1: a schedule needs an end; "
                    "try optim.schedule_epochs=10, or optim.scheduler=null"
                )
    module = Classifier(
        net,
        loss,
        optimizer,
        scheduler,
        seed=config.seed,
        num_classes=scores.shape[1],
        top5=config.top5_error,
        schedule_epochs=config.optim.schedule_epochs,
    )
    # Stored in checkpoints, which can then be loaded alone; loggers get them from the run.
    module.save_hyperparameters(stored_values(config), logger=False)
    return module


def example_input(config: DictConfig, data: pl.LightningDataModule) -> torch.Tensor:
    """Example inputs of the net: zeros, or the first images of a data module of the user's own."""
    if "channels" in config.data and config.model.input.size is not None:
        side = config.model.input.size
        return torch.zeros(1, config.data.channels, side, side)
    with build_errors("data"):
        data.prepare_data()
        data.setup("fit")
        with torch.random.fork_rng(devices=[]):
            batch: Any = next(iter(data.train_dataloader()))
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise UserError(
            "data: the nets of this project need batches (images, labels), and got "
            f"{type(batch).__name__}; your own LightningModule may take any batch"
        )
    return batch[0][:2].float()


def check_scores(config: DictConfig, net: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The net's scores (B, classes); UserError if there is not one for each class of the data."""
    try:
        with eval_mode(net), torch.no_grad():
            scores = net(images)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if "channels" in config.data:
            raise
        shape = "x".join(map(str, images.shape[1:]))
        raise UserError(
            f"data: its images of {shape} do not fit model.net: {one_line(error)}"
        ) from error
    classes = config.data.get("num_classes")
    if scores.dim() != 2 or classes not in (None, scores.shape[1]):
        shape, key = "x".join(map(str, scores.shape[1:])), "num_classes"
        way_out = f"model.net.{key}=${{data.{key}}}" if key in config.model.net else "another model"
        raise UserError(
            f"model.net: gives {shape} scores for an image and data has {classes} classes; "
            f"try {way_out}"
        )
    return scores


def load_initial_weights(module: pl.LightningModule, path: Any, skipped: list[str]) -> None:
    """Load the weights of a run or checkpoint; UserError names the layers that do not fit.

    `skipped` are names of layers that keep their initial weights.
    """
    found = read_checkpoint(find_checkpoint(path))["state_dict"]
    own = module.state_dict()
    layers = {name: name.removeprefix("net.").rpartition(".")[0] for name in [*own, *found]}
    has = list(dict.fromkeys(layers[name] for name in own if layers[name]))
    unknown = [s for s in skipped if not any(f"{layer}.".startswith(f"{s}.") for layer in has)]
    if unknown:
        raise UserError(
            f"init_skip=[{','.join(unknown)}]: the net has no such layer; it has {', '.join(has)}"
        )
    skips = tuple(f"{layer}." for layer in skipped)
    taken = [name for name, layer in layers.items() if not f"{layer}.".startswith(skips)]
    wrong = [n for n in taken if n not in own or n not in found or own[n].shape != found[n].shape]
    if wrong:
        misfits = list(dict.fromkeys(layers[name] for name in wrong if layers[name]))
        raise UserError(
            f"init_from={path}: does not fit this net in {', '.join(misfits)}; "
            f"try init_skip=[{','.join([*skipped, *misfits])}] to keep their initial weights"
        )
    module.load_state_dict(own | {name: found[name] for name in taken})
    log.info("weights of %s%s", path, f", without {', '.join(skipped)}" if skipped else "")


# --- Trainer -------------------------------------------------------------------------------------


def build_trainer(
    config: DictConfig, callbacks: Sequence[Callback] = (), **given: Any
) -> pl.Trainer:
    """Lightning's Trainer for a config; `given` are loggers and directories.

    Raises UserError for arguments that Trainer rejects.
    """
    several = devices.device_count(config.trainer) * config.trainer.num_nodes > 1
    node: dict[str, Any] = dict(config.trainer)  # type: ignore[arg-type]
    if (kind := node["accelerator"]) in ("gpu", "cuda") and not torch.accelerator.is_available():
        raise UserError(
            f"trainer.accelerator={kind}: torch {torch.__version__} cannot use the GPU of this "
            "machine: the driver is too old, or this torch was built without it; try trainer=cpu"
        )
    if node["strategy"] == "auto" and several:
        node["strategy"] = {"_target_": "classic_cnns.trainer.ddp.DDP"}
    for name in ("compile", "channels_last"):  # not arguments of Trainer
        node.pop(name, None)
    # Otherwise Lightning would add a bar and checkpoints of its own.
    node.setdefault("enable_progress_bar", any(isinstance(c, ProgressBar) for c in callbacks))
    node["enable_checkpointing"] = any(isinstance(c, Checkpoint) for c in callbacks)
    node["precision"] = devices.choose_precision(node["precision"], node["accelerator"])
    if not node.get("profiler"):
        given["profiler"] = NoProfiler()
    with build_errors("trainer"):
        plugins = [instantiate(plugin) for plugin in node.pop("plugins", None) or []]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        return instantiate(
            node, plugins=plugins, callbacks=list(callbacks), **given, _convert_="all"
        )


def build_parts(config: DictConfig, group: str, kind: type, **places: Any) -> list[Any]:
    """The callbacks or loggers of a config; `places` are passed to classes that accept them.

    Raises UserError for parts that cannot be built or are not of class `kind`.
    """
    parts = []
    for name, node in (config[group] or {}).items():
        key = f"{group}.{name}"
        if node is None:
            continue  # removed by the user
        if name == "_target_":
            raise UserError(
                f"{key}={node}: in its file, write a name of yours above it, and indent it"
            )
        if not hasattr(node, "get") or "_target_" not in node:
            raise UserError(f"{key}: needs a _target_, the class that it names")
        parts.append(build_part(key, node, kind, **places))
    return parts


def check_monitors(config: DictConfig, module: pl.LightningModule) -> None:
    """Raise UserError for a callback that monitors a metric `Classifier` does not log."""
    known = module.metric_names if isinstance(module, Classifier) else []
    for name, node in (config.callbacks or {}).items():
        monitor = (node or {}).get("monitor")
        if known and monitor and monitor not in (*known, "epoch", "step"):
            raise UserError(
                f"callbacks.{name}.monitor={monitor}: is not among the metrics; "
                f"try one of {', '.join(known)}"
            )


EXTRAS = ("wandb", "mlflow", "rich", "psutil")


@contextmanager
def build_errors(key: str) -> Iterator[None]:
    """Turn errors in building the part at `key` into a UserError of one line."""
    try:
        yield
    except (
        InstantiationException, MisconfigurationException, ImportError, RuntimeError, TypeError,
        ValueError, AttributeError,
    ) as error:  # fmt: skip
        cause: Any = error.__cause__ if isinstance(error, InstantiationException) else error
        cause = cause or error
        line = one_line(cause)
        if isinstance(cause, ImportError):  # a missing package or a misspelt _target_
            package = getattr(cause, "name", None) or next((e for e in EXTRAS if e in line), "")
            if package in EXTRAS:
                raise UserError(f"{key}: needs a package; try pip install {package}") from error
        own = line.startswith(("model.", "optim.", "data.", "trainer.", "callbacks."))
        way_out = f"leave the keys of {key.split('.')[0]} out to use those of its file"
        if "unexpected keyword argument" in line:
            part = "optim.optimizer" if key == "optim" else key
            partial = ", _partial_: true" * (key == "optim")
            way_out += f", or replace them all: '{part}={{_target_: <class>{partial}}}'"
        if key == "optim" and "required positional argument: " in line:
            way_out = "add _partial_: true to it, since a run gives it the weights"
        if "ListConfig' object to buffer" in line:
            way_out = "write such a list as {_target_: torch.tensor, data: [...]}"
        if place := line_of_user(cause):
            way_out = f"see {place}"
        raise UserError(line if own else f"{key}: {line}; {way_out}") from error


# Parts of errors of Lightning and torch about settings, and what is reported for them.
ERRORS_OF_SETTINGS = {
    "learning rate finder": "callbacks: LearningRateFinder needs a module with the attribute 'lr'; "
    "try rates instead: -m optim.lr=0.001,0.01,0.1",
    "has no attribute 'backbone'": "callbacks: BackboneFinetuning: {line}, which it needs",
    "expected Tensor as element": "optim.optimizer.fused=true: does not take layers whose training "
    "starts later; try optim.optimizer.fused=false",
    "does not support dense gradients": "optim.optimizer: {line}; try another optim",
    "Early stopping conditioned on metric": "callbacks: {line}",
    "no `dataloader_idx` argument": "data: the nets of this project take one DataLoader for each "
    "split; your own LightningModule may take several",
    "more than 1 value per channel": "data.batch_size: the last batch of an epoch has one image "
    "(for a process), and batch normalisation needs two; try another data.batch_size",
    "does not have a deterministic implementation": "trainer.deterministic=true: {start}",
}


# What errors of torch, on any device, and of C++ contain if memory is not sufficient.
OUT_OF_MEMORY = "out of memory", "allocate memory", "bad_alloc"


@contextmanager
def lightning_errors(config: DictConfig) -> Iterator[None]:
    """Turn errors of Lightning and torch about the user's settings into a UserError of one line."""
    try:
        yield
    except (
        AttributeError, MemoryError, MisconfigurationException, RuntimeError, TypeError, ValueError,
    ) as error:  # fmt: skip
        line, place = one_line(error), line_of_user(error)
        if isinstance(error, MemoryError) or any(part in line for part in OUT_OF_MEMORY):
            keys = [key for key in ("batch_size", "eval_batch_size") if key in config.data]
            given = ", ".join(f"data.{key}={config.data[key]}" for key in keys) or "data"
            raise UserError(f"{given}: memory is not sufficient; try smaller batches") from error
        name = line.partition(" ")[0].strip("`")
        known = next((text for part, text in ERRORS_OF_SETTINGS.items() if part in line), None)
        if isinstance(error, MisconfigurationException):
            message = f"{line}; see {place}" if place else line
        elif place:
            raise  # not about a setting: the user needs the traceback
        elif isinstance(error, ValueError) and name in trainer_arguments():
            message = f"trainer.{name}: {line}"
        elif known:
            message = known.format(line=line, start=line.partition(",")[0])
        elif type(error).__name__ in ("BackendCompilerFailed", "InductorError"):
            why = line.partition(" Set TORCH")[0][:200]
            message = f"trainer.compile: {why}; try trainer.compile=null"
        else:
            raise
        raise UserError(message) from error


def line_of_user(error: BaseException) -> str | None:
    """The last file and line of the user's own code through which an error has passed."""
    others = {Path(file).parents[1] for file in (__file__, torch.__file__)}
    others.add(Path(random.__file__).parent)
    installed = {"site-packages", "dist-packages"}  # there may be several of them
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not others & set(path.parents) and not installed & set(path.parts):
            return f"{path}:{frame.lineno}"
    return None

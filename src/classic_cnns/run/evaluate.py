"""Evaluation of a checkpoint: all metrics of its run, and those of each class."""

import json
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig
from torch import Tensor

from classic_cnns import UserError
from classic_cnns.callbacks.seed import seed_generators
from classic_cnns.classifier import Classifier, Diverged
from classic_cnns.config.stored import config_errors, stored_values
from classic_cnns.config.trust import untrusted_packages
from classic_cnns.data.preprocessing import Preprocessing
from classic_cnns.report.log import progress_bar, show_log
from classic_cnns.report.markdown import markdown_table
from classic_cnns.report.results import format_value
from classic_cnns.run.build import build, build_trainer, lightning_errors
from classic_cnns.run.run import apply_precision, check_weights
from classic_cnns.trainer.checkpoint_io import read_checkpoint
from classic_cnns.trainer.devices import keep_freed_memory, limit_threads


@dataclass
class Evaluation:
    """`metrics` have the run's names; `classes` is empty for modules other than `Classifier`."""

    checkpoint: str
    data: str
    split: str
    metrics: dict[str, float]
    classes: dict[str, dict[str, Any]]

    def json(self) -> str:
        return json.dumps(vars(self))

    def table(self) -> str:
        lines = [f"{self.checkpoint} on {self.data}, {self.split}", ""]
        lines += [f"{name:24}{format_value(name, x):>10}" for name, x in self.metrics.items()]
        if self.classes:
            cells = [["class", "images", "precision", "recall"]]
            for name, row in self.classes.items():
                rates = [row["precision"], row["recall"]]
                shown = ["-" if rate is None else f"{rate:.2%}" for rate in rates]
                cells.append([name, f"{row['images']:,}", *shown])
            lines += ["", markdown_table(cells)]
        return "\n".join(lines)


class Classes(Callback):
    """Counts for each class of a `Classifier` right predictions, all its predictions, its images.

    `counts` (3, classes) are over all ranks. Torchmetrics' own counts of many classes take the
    memory of a confusion matrix.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[Tensor, Tensor]] = []  # predictions and labels, counted at the end
        self.counts: list = [[], [], []]
        self.bar: Any = None

    def start(self, trainer: Any, pl_module: Any) -> None:
        self.bar = progress_bar(" batches", None, shown=trainer.is_global_zero, delay=2)

    def add(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.bar.update()
        if isinstance(pl_module, Classifier) and outputs is not None:
            self.steps.append((outputs, batch[1]))

    def end(self, trainer: Any, pl_module: Any) -> None:
        self.bar.close()
        if isinstance(pl_module, Classifier) and (classes := pl_module.num_classes):
            none = torch.zeros(0, dtype=torch.int64, device=pl_module.device)  # without any step
            answers, labels = map(torch.cat, zip((none, none), *self.steps, strict=True))
            parts = labels[answers == labels], answers, labels
            counts = torch.stack([part.bincount(minlength=classes) for part in parts])
            group = getattr(trainer.strategy, "data_group", None)
            self.counts = trainer.strategy.reduce(counts, group, "sum").tolist()

    on_test_start = on_validation_start = start
    on_test_batch_end = on_validation_batch_end = add
    on_test_end = on_validation_end = end


def evaluate(checkpoint: Path, config: DictConfig, split: str) -> Evaluation | None:
    """Measure a checkpoint on the `split`, "test" or "val", of the config's data.

    With several ranks, each of them calls this, and ranks other than 0 return None. Raises
    UserError if net, checkpoint and data do not match.
    """
    if (limit := config.trainer.get(key := f"limit_{split}_batches")) == 0:
        raise UserError(
            f"trainer.{key}={limit}: leaves out all images of split={split}; try trainer.{key}=1.0"
        )
    show_log(quiet=True)
    keep_freed_memory()
    limit_threads()
    found = read_checkpoint(checkpoint)
    check_weights(checkpoint, config, found)
    module, built = build(config)
    data: Any = built
    if not is_overridden(f"{split}_dataloader", data):
        other = "val" if split == "test" else "test"
        raise UserError(f"split={split}: the data module has no such set; try split={other}")
    stored = found.get("preprocessing")
    if stored and isinstance(getattr(data, "preprocessing", None), Preprocessing):
        # Use the mean image of its own training set.
        with config_errors(checkpoint):
            data.preprocessing.mean, data.has_statistics = stored["mean"], True
            data.run_classes = list(stored.get("classes", ()))
        if hasattr(data, "sets"):  # validation images are a part of the training set
            data.sets = ("test",) if split == "test" else ("train",)
    classes = Classes()
    trainer: pl.Trainer = build_trainer(config, callbacks=[classes], logger=False)
    trainer.logger = DummyLogger()  # a module of the user's own may write to it
    apply_precision(trainer, module, config.trainer.get("channels_last"))
    measure = trainer.test if split == "test" else trainer.validate
    # Errors in the user's own classes keep their traceback.
    own = untrusted_packages(stored_values(config))
    errors = nullcontext() if own else config_errors(checkpoint)
    with errors, lightning_errors(config), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")  # no callbacks
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning 2.6 with torch 2.15
        data.prepare_data()
        seed_generators(config.seed, 0)  # as before training
        try:
            measure(module, data, ckpt_path=str(checkpoint), weights_only=True, verbose=False)
        except Diverged as error:
            raise UserError(f"{error}; try another checkpoint") from error
    if not trainer.is_global_zero:
        return None
    metrics = {name: x.item() for name, x in trainer.callback_metrics.items()}
    counts = list(zip(*classes.counts, strict=True))
    names = getattr(data, "class_names", None) or [str(number) for number in range(len(counts))]
    rows = {
        name: {
            "images": images,
            "precision": right / predicted if predicted else None,
            "recall": right / images if images else None,
        }
        for name, (right, predicted, images) in zip(names, counts, strict=False)
    }
    name = config.data.get("dataset", type(data).__name__)
    return Evaluation(str(checkpoint), name, split, metrics, rows)

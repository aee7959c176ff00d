"""Metrics in a file while the run trains, and in its checkpoints."""

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from classic_cnns import UserError
from classic_cnns.files import write_text
from classic_cnns.report.results import read_metrics


class History(Callback):
    """Appends a line of JSON with the metrics of an epoch to `metrics.jsonl` at its end.

    A line has `epoch` (the number of finished epochs), `epochs` (the number to be done), `step` of
    the optimizer, `seconds` of training so far, and `metrics` under the names that the module logs;
    not every epoch has a validation.
    Other programs may follow the file. Checkpoints contain the latest metrics and the seconds too.
    Every run has this callback.
    """

    def __init__(self) -> None:
        self.trained = False  # in this start of the run
        self.metrics: dict[str, float] = {}  # latest values
        self.of_epoch: dict[str, float] = {}  # values logged in this epoch
        self.earlier: dict[str, Tensor] = {}  # Lightning's values at the start of this epoch
        self.seconds = 0.0  # of all finished epochs, over all starts
        self.epoch_seconds = 0.0  # of the current epoch, before it was resumed
        self.started = time.perf_counter()
        self.line: dict[str, Any] = {}  # of the last finished epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.trained, self.started = True, time.perf_counter() - self.epoch_seconds
        path = self.path(trainer)
        if trainer.is_global_zero and path.exists():
            done = trainer.current_epoch
            kept = [line for line in read_metrics(path.parent)[0] if line["epoch"] <= done]
            write_text(path, "".join(f"{json.dumps(line)}\n" for line in kept))

    def path(self, trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "metrics.jsonl"

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write(trainer)
        self.of_epoch, self.earlier = {}, dict(trainer.callback_metrics)
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += time.perf_counter() - self.started
        self.epoch_seconds, self.started = 0.0, time.perf_counter()
        # Written later, since the module logs in a hook that is called after this one.
        self.line = {
            "epoch": trainer.current_epoch + 1,
            "epochs": trainer.max_epochs,
            "step": trainer.global_step,
            "seconds": round(self.seconds, 3),
        }

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if not isinstance(exception, UserError):  # with which a run that wrote nothing is removed
            self.write(trainer)  # of the epoch before, if a callback fails as the next one starts

    def write(self, trainer: pl.Trainer) -> None:
        self.read(trainer)
        if self.line and trainer.is_global_zero:
            self.append(trainer, self.line | {"metrics": self.of_epoch})
        self.line = {}

    def append(self, trainer: pl.Trainer, line: dict[str, Any]) -> None:
        with open(self.path(trainer), "a") as file:
            file.write(json.dumps(line) + "\n")

    def read(self, trainer: pl.Trainer) -> None:
        if not trainer.sanity_checking:
            self.of_epoch |= logged_since(self.earlier, trainer)
            self.metrics |= self.of_epoch

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        self.read(trainer)
        within = trainer.training and not trainer.is_last_batch
        checkpoint["metrics"] = dict(self.metrics)
        checkpoint["epoch_metrics"] = dict(self.of_epoch) if within else {}
        checkpoint["line"] = self.line and self.line | {"metrics": dict(self.of_epoch)}
        checkpoint["seconds"] = self.seconds
        checkpoint["epoch_seconds"] = time.perf_counter() - self.started if within else 0.0

    def on_load_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit" and "seconds" in checkpoint:
            self.metrics = dict(checkpoint["metrics"])
            self.of_epoch = dict(checkpoint.get("epoch_metrics", {}))  # absent in earlier versions
            self.seconds = checkpoint["seconds"]
            self.epoch_seconds = checkpoint["epoch_seconds"]
            line = checkpoint.get("line")  # of an epoch that has ended
            if line and trainer.is_global_zero:
                known = read_metrics(self.path(trainer).parent)[0]
                if not any(old["epoch"] == line["epoch"] for old in known):
                    self.append(trainer, line)  # the run was killed before it was written


def logged_since(earlier: dict[str, Tensor], trainer: pl.Trainer) -> dict[str, float]:
    """The metrics that were logged after `earlier` was copied from `trainer.callback_metrics`.

    Lightning keeps the values of earlier epochs there, and makes a new tensor for a new value.
    """
    found = trainer.callback_metrics.items()
    return {name: value.item() for name, value in found if value is not earlier.get(name)}

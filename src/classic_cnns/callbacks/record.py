"""What a run writes of itself while it trains, and what its checkpoints hold beside the weights."""

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


class Record(Callback):
    """`metrics.jsonl`: a line of JSON with all metrics at the end of each epoch; every run has it.

    It may be followed while the run goes on. A line holds the finished `epoch` of `epochs`, the
    optimizer's `step`, the `seconds` of training, and `metrics` by the names that the module logs.
    Checkpoints get the newest metrics and the seconds too.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}  # the newest value of each
        self.seconds = 0.0  # of all epochs that are over, since the first start
        self.epoch_seconds = 0.0  # of the epoch under way, before it was resumed
        self.started = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter() - self.epoch_seconds
        if trainer.is_global_zero:
            path = self.path(trainer)
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            kept = [x for x in lines if json.loads(x)["epoch"] <= trainer.current_epoch]
            path.write_text("".join(kept))  # without what an interrupted start is to do again

    def path(self, trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "metrics.jsonl"

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.read(trainer)

    def read(self, trainer: pl.Trainer) -> None:
        if not trainer.sanity_checking:
            self.metrics |= {name: x.item() for name, x in trainer.callback_metrics.items()}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.read(trainer)
        self.seconds += time.perf_counter() - self.started
        self.epoch_seconds, self.started = 0.0, time.perf_counter()
        if trainer.is_global_zero:
            line = {
                "epoch": trainer.current_epoch + 1,
                "epochs": trainer.max_epochs,
                "step": trainer.global_step,
                "seconds": round(self.seconds, 3),
                "metrics": self.metrics,
            }
            with open(self.path(trainer), "a") as file:
                file.write(json.dumps(line) + "\n")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.read(trainer)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        checkpoint["metrics"] = dict(self.metrics)
        checkpoint["seconds"] = self.seconds
        within = trainer.training and not trainer.is_last_batch
        checkpoint["epoch_seconds"] = time.perf_counter() - self.started if within else 0.0

    def on_load_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit" and "seconds" in checkpoint:
            self.metrics = dict(checkpoint["metrics"])
            self.seconds = checkpoint["seconds"]
            self.epoch_seconds = checkpoint["epoch_seconds"]

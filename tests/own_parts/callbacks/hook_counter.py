"""Counts the calls of all hooks of a callback."""

from collections import Counter
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

HOOKS = [name for name in dir(Callback) if name.startswith(("on_", "setup", "teardown"))]


class HookCounter(Callback):
    last: Any = None

    def __init__(self) -> None:
        HookCounter.last = self
        self.calls: Counter[str] = Counter()
        self.inference = self.anomaly = False
        for name in HOOKS:
            setattr(self, name, self.counting(name))

    def counting(self, name: str):
        def hook(trainer, *args, **kwargs):
            self.calls[name] += 1
            self.trainer = trainer
            if name == "on_validation_batch_start":
                self.inference = torch.is_inference_mode_enabled()
            self.anomaly |= torch.is_anomaly_enabled()

        return hook

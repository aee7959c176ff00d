"""A callback for start.py that ends the process after the first training step."""

import os

from lightning.pytorch.callbacks import Callback


class End(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        os._exit(0)

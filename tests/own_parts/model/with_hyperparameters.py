"""A module as in templates: it saves its arguments, of which some are no plain values."""

import lightning.pytorch as pl
import numpy as np
from torch import nn


class WithHyperparameters(pl.LightningModule):
    def __init__(self, hidden: list, optimizer, odd: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["odd"], logger=False)
        self.odd = odd
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * 32 * 32, hidden[0]), nn.ReLU(), nn.Linear(hidden[0], 10)
        )

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def on_save_checkpoint(self, checkpoint):
        if self.odd:
            checkpoint["scores"] = np.zeros(3)

    def configure_optimizers(self):
        return self.hparams.optimizer(self.parameters())

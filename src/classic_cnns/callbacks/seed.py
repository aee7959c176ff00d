"""Seeds of the global random number generators, from which a user's module or DataLoader draws."""

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from classic_cnns.callbacks.checkpoint import finished_epochs


class SeedEpochs(Callback):
    """Seeds torch, NumPy and Python at the start of each epoch, so that resuming changes nothing.

    The first epoch continues from the seed of the start of training. Every run has this callback;
    the nets and data of this project have their own seeds.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.resumed = 0  # the epoch that was seeded when its checkpoint was loaded

    def on_load_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        # Lightning starts a pass over the data before it calls any hook of the resumed epoch.
        if trainer.state.fn == "fit":
            self.resumed = finished_epochs(checkpoint)
            self.seed_epoch(trainer, self.resumed)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch not in (0, self.resumed):
            self.seed_epoch(trainer, trainer.current_epoch)

    def seed_epoch(self, trainer: pl.Trainer, epoch: int) -> None:
        seed_generators(self.seed, epoch, trainer.global_rank)


def seed_generators(*key: int) -> None:
    """Seed torch, NumPy and Python by a pure function of `key`."""
    seed, short = np.random.SeedSequence(key).generate_state(2, np.uint64).tolist()
    torch.manual_seed(seed)
    np.random.seed(short % 2**32)
    random.seed(seed)

"""A module as in many Lightning projects: names that ours has too, and its own logger in a test."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn


class Ordinary(pl.LightningModule):
    metric_names = ("acc",)

    def __init__(self, optimizer, model="tiny", loss="mse", input=784, precision=3):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(input, 10)

    def step(self, batch):
        return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def training_step(self, batch, batch_idx):
        return self.step(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(batch))

    def test_step(self, batch, batch_idx):
        self.logger.experiment.add_scalar("batch", batch_idx, batch_idx)
        self.log("test_loss", self.step(batch))

    def configure_optimizers(self):
        return self.hparams.optimizer(self.parameters())


class FrozenStem(nn.Module):
    """A net with a pretrained part that must not change."""

    def __init__(self):
        super().__init__()
        self.stem = (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval().requires_grad_(False)
        )
        self.towers = nn.ModuleList([nn.Flatten()])
        self.head = nn.LazyLinear(10)

    def forward(self, images):
        return self.head(self.towers[0](self.stem(images)))


class TrainLater(BaseFinetuning):
    """Trains the first layer of LeNet-5 from the second epoch on."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net.C1)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.make_trainable(pl_module.net.C1)  # the optimizer has all layers already

"""A classifier as in Lightning's introduction, which logs in all hooks."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy


class LitClassifier(pl.LightningModule):
    def __init__(self, classes: int, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(32), nn.ReLU(), nn.Linear(32, classes))
        self.accuracy = MulticlassAccuracy(classes)

    def setup(self, stage):
        self.net(torch.zeros(2, 3, 32, 32))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = cross_entropy(self.net(images), labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.accuracy(self.net(images), labels)
        self.log("val_acc", self.accuracy, on_step=False, on_epoch=True)

    def test_step(self, batch, batch_idx):
        images, labels = batch
        self.log("test_loss", cross_entropy(self.net(images), labels))

    def on_train_epoch_end(self):
        self.log("epochs_seen", float(self.current_epoch))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "val_acc"},
        }

"""A short version of Lightning's example of a GAN: two optimizers with manual optimization."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy


class GAN(pl.LightningModule):
    def __init__(self, pixels: int, latent: int, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(latent, 32), nn.ReLU(), nn.Linear(32, pixels))
        self.discriminator = nn.Sequential(nn.Linear(pixels, 32), nn.ReLU(), nn.Linear(32, 1))

    def training_step(self, batch, batch_idx):
        images = batch[0].flatten(1)
        generate, discriminate = self.optimizers()
        made = self.generator(torch.randn(len(images), self.hparams.latent))

        self.toggle_optimizer(generate)
        loss = cross_entropy(self.discriminator(made), torch.ones(len(images), 1))
        generate.zero_grad()
        self.manual_backward(loss)
        generate.step()
        self.untoggle_optimizer(generate)
        self.log("g_loss", loss, prog_bar=True)

        self.toggle_optimizer(discriminate)
        real = cross_entropy(self.discriminator(images), torch.ones(len(images), 1))
        fake = cross_entropy(self.discriminator(made.detach()), torch.zeros(len(images), 1))
        discriminate.zero_grad()
        self.manual_backward(real + fake)
        discriminate.step()
        self.untoggle_optimizer(discriminate)
        self.log("d_loss", real + fake, on_step=True, on_epoch=True)

    def configure_optimizers(self):
        rate = self.hparams.lr
        return [
            torch.optim.Adam(self.generator.parameters(), lr=rate),
            torch.optim.Adam(self.discriminator.parameters(), lr=rate),
        ]

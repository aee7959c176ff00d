"""A data module whose training data have no length."""

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, IterableDataset


class Stream(IterableDataset):
    def __init__(self, count: int | None) -> None:
        self.count = count

    def __iter__(self):
        generator, done = torch.Generator().manual_seed(0), 0
        while done != self.count:
            done += 1
            image = torch.rand(1, 32, 32, generator=generator)
            yield image, torch.randint(10, (), generator=generator)


class Endless(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Stream(None), 4)

    def val_dataloader(self):
        return DataLoader(Stream(16), 4)

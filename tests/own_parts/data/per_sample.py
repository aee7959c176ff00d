"""A data module with torchvision's data and transforms, and ordinary DataLoaders."""

import lightning.pytorch as pl
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import FakeData


class PerSample(pl.LightningDataModule):
    def __init__(self, batch_size: int, channels: int = 3, side: int = 32) -> None:
        super().__init__()
        self.batch_size, self.size = batch_size, (channels, side, side)

    def setup(self, stage):
        flip = [transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.train = FakeData(64, self.size, transform=transforms.Compose(flip))
        self.test = FakeData(32, self.size, transform=transforms.ToTensor(), random_offset=64)

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.test, self.batch_size)

    def test_dataloader(self):
        return DataLoader(self.test, self.batch_size)

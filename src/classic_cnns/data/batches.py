"""Batches as one gather from tensors that lie on the run's device; nothing per sample in Python."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def generator(*key: int) -> torch.Generator:
    """A CPU generator that is a pure function of `key`, say (seed, epoch, purpose)."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


class Batches:
    """Iterates over (images float32 (B, C, H, W), labels int64 (B,)) of one epoch.

    `images` (N, C, H, W) uint8 and `labels` (N,) are whole data sets; `indices` (n,) says which of
    them take part. With `shuffle`, their order in an epoch is a pure function of (seed, epoch).
    Rank r of R takes every R-th image of each global batch from the r-th on, so that all ranks
    together see each image exactly once. `epoch` is asked at the start of each pass.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        batch_size: int,
        *,
        prepare: Callable[[Tensor], Tensor],
        augment: Sequence = (),
        shuffle: bool = False,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images, self.labels, self.indices = images, labels, indices
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.prepare, self.augment, self.shuffle = prepare, augment, shuffle
        self.seed, self.epoch = seed, epoch
        # One process makes some batches at once, since the calls cost more than the work.
        self.block = batch_size * (max(1, 1024 // batch_size) if world_size == 1 else 1)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """The indices of all images of an epoch, over all ranks, in the order of their visit."""
        if not self.shuffle:
            return self.indices
        order = torch.randperm(len(self.indices), generator=generator(self.seed, epoch, 0))
        return self.indices[order.to(self.indices.device)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.epoch()
        order = self.order(epoch)
        draws = [transform.draws for transform in self.augment]
        noise = torch.rand(len(order), sum(draws), generator=generator(self.seed, epoch, 1))
        noise = noise.to(order.device)
        for start in range(0, len(order), self.block):
            mine = slice(start + self.rank, start + self.block, self.world_size)
            index = order[mine]
            images = self.images.index_select(0, index)
            for transform, numbers in zip(self.augment, noise[mine].split(draws, 1), strict=True):
                images = transform(images, numbers)
            pairs = self.prepare(images), self.labels.index_select(0, index)
            yield from zip(*(part.split(self.batch_size) for part in pairs), strict=True)

"""Batches from tensors on the run's device, by one gather each: no Python code per image."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor


def generator(*key: int) -> torch.Generator:
    """A CPU generator seeded by a pure function of `key`, for example (seed, epoch, purpose)."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


@dataclass(eq=False, repr=False)
class Batches:
    """Iterates over batches (images float32 (B, C, H, W), labels int64 (B,)) of one epoch.

    `images` (N, C, H, W) uint8 and `labels` (N,) are a whole data set; `indices` (n,) selects the
    images of this split. With `shuffle`, the order of an epoch is a pure function of (seed, epoch).
    Each image is seen by exactly one rank: rank r of R takes images r, r + R, ... of each batch, or
    with `whole` the batches r, r + R, ..., so that mean losses equal those of one process to the
    last bit. A rank's share may be empty. `epoch` is called at the start of each pass, and `ended`
    says whether this pass is over before its last batch. After `load_state_dict`, the next pass
    continues where the saved one was. `to_input` converts uint8 images to inputs of the net.
    """

    batch_context: ClassVar[Any] = nullcontext  # a context for the work on each batch
    at_once: ClassVar = 1024  # images, in one process: fewer and larger calls are faster
    noise_at_once: ClassVar = 2**16  # images

    images: Any
    labels: Tensor
    indices: Tensor
    batch_size: int
    _: KW_ONLY
    to_input: Callable[[Tensor], Tensor]
    augment: Sequence = ()
    shuffle: bool = False
    whole: bool = False
    seed: int = 0
    epoch: Callable[[], int] = lambda: 0
    ended: Callable[[], bool] = lambda: False
    rank: int = 0
    world_size: int = 1
    resumed: dict[str, int] = field(default_factory=dict)  # the state of a pass to continue

    def __post_init__(self) -> None:
        self.step = self.batch_size * (self.world_size if self.whole else 1)  # images of all ranks
        several = max(1, self.at_once // self.batch_size)
        self.block = self.step * (several if self.world_size == 1 else 1)
        self.passed = 0

    def __len__(self) -> int:
        return -(-len(self.indices) // self.step)

    def size(self, number: int) -> int:
        """The number of images of step `number` over all ranks."""
        return min(self.step, len(self.indices) - number * self.step)

    def state_dict(self) -> dict[str, int]:
        """The number of batches of this pass that have been returned; the same on all ranks."""
        return {"passed": 0 if self.ended() else self.passed % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.resumed.update(state)

    def order(self, epoch: int) -> Tensor:
        """The indices of all images of an epoch, over all ranks, in order."""
        if not self.shuffle:
            return self.indices
        order = torch.randperm(len(self.indices), generator=generator(self.seed, epoch, 0))
        return self.indices[order.to(self.indices.device)]

    def read(self, shares: Sequence[Tensor]) -> Iterator[tuple[Tensor, Any]]:
        """For each share of indices, its images and the rows of the share that they belong to."""
        for share in shares:
            yield self.images.index_select(0, share), slice(None)

    def noise(self, epoch: int, columns: int) -> Iterator[Tensor]:
        """Uniform numbers (n, columns) in [0, 1) for the images of each block of an epoch."""
        seeded, count = generator(self.seed, epoch, 1), len(self.indices)
        # Those of a million images at once would take 30 MB.
        size = max(1, self.noise_at_once // self.block) * self.block
        for start in range(0, count, size):
            numbers = torch.rand(min(size, count - start), columns, generator=seeded)
            yield from numbers.to(self.indices.device).split(self.block)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.epoch()
        draws = [transform.draws for transform in self.augment]
        first = self.resumed.pop("passed", 0)  # also from the data module, which shares it
        skipped = first * self.step // self.block  # blocks
        rows = slice(self.rank, None, self.world_size)
        if self.whole:
            share = self.block // self.world_size
            rows = slice(self.rank * share, (self.rank + 1) * share)
        shares = [block[rows] for block in self.order(epoch).split(self.block)[skipped:]]
        noise = islice(self.noise(epoch, sum(draws)), skipped, None)
        blocks = zip(shares, self.read(shares), noise, strict=True)
        for block, (share, (images, decoded), numbers) in enumerate(blocks, skipped):
            with self.batch_context():
                each = numbers[rows][decoded].split(draws, 1)
                for transform, own in zip(self.augment, each, strict=True):
                    images = transform(images, own)
                labels = self.labels.index_select(0, share[decoded])
                pairs = self.to_input(images), labels
            batches = zip(*(part.split(self.batch_size) for part in pairs), strict=True)
            for number, batch in enumerate(batches, block * self.block // self.step):
                if number >= first:
                    self.passed = number + 1
                    yield batch

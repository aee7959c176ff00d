"""Reading a data set by worker processes."""

import sys
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


def read_ahead(dataset: Dataset, shares: Any, workers: int, pinned: bool = False) -> DataLoader:
    """Iterates over `dataset[share]` for each of `shares`, read ahead by `workers` processes.

    Values are returned unchanged and in order. Without workers, this process reads. With `pinned`
    tensors are in memory from which a GPU reads faster.
    """
    # The default since Python 3.14 is not to fork: then each worker imports torch, which takes
    # seconds in each pass, and gets a copy of the data set, such as the names of a million files.
    forked = workers > 0 and sys.platform == "linux"
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=shares,
        num_workers=workers,
        collate_fn=tuple,  # no conversion
        pin_memory=pinned,
        multiprocessing_context="fork" if forked else None,
        generator=torch.Generator(),  # otherwise the loader draws from the global one
    )

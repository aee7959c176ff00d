"""Reading a data set by worker processes."""

import logging
import pickle
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from math import inf
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from classic_cnns.trainer.processes import end_with_parent

log = logging.getLogger(__name__)

SHARED = "/dev/shm"  # where torch keeps shared memory on Linux


def read_ahead(
    dataset: Dataset, shares: Any, workers: int, *, size: int = 0, pinned: bool = False
) -> Iterable[tuple]:
    """Iterates over `dataset[share]` for each of `shares`, read ahead by `workers` processes.

    Values are tuples, and are returned unchanged and in order. Without workers, this process reads.
    `size` is the number of bytes of all tensors in a value: it decides whether there is enough
    shared memory to send them. With `pinned` tensors are in memory from which a GPU reads faster.
    """
    # The default since Python 3.14 is not to fork: then each worker imports torch, which takes
    # seconds in each pass, and gets a copy of the data set, such as the names of a million files.
    forked = workers > 0 and sys.platform == "linux"
    # A worker reads two values ahead, and there may be a loader for validation at the same time.
    piped = forked and free_shared_memory() < 4 * (workers + 1) * size
    if piped:
        report_pipes()
    # Tensors in bytes are sent with their content; a tuple stays as it is.
    collate: Any = pickle.dumps if piped else tuple
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=shares,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pinned,
        multiprocessing_context="fork" if forked else None,
        worker_init_fn=end_too,
        generator=torch.Generator(),  # otherwise the loader draws from the global one
    )
    return map(pickle.loads, loader) if piped else loader


def end_too(worker: int) -> None:
    """End with a killed reader: torch's worker would wait for ever to send it a large value."""
    end_with_parent()


def free_shared_memory() -> float:
    """Bytes of shared memory that are free. A worker that finds too little waits for ever."""
    with suppress(OSError):
        return shutil.disk_usage(SHARED).free
    return inf


@cache  # once in a process
def report_pipes() -> None:
    log.info(
        "%s MB of %s are free, too little for the images that workers read ahead: they are sent "
        "through pipes, which is slower. A container gets more with docker run --shm-size=2g",
        f"{free_shared_memory() / 1e6:,.0f}", SHARED,
    )  # fmt: skip

"""Reading a data set by worker processes, or by threads where processes cannot be forked."""

import logging
import os
import pickle
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from classic_cnns.trainer.processes import end_with_parent

log = logging.getLogger(__name__)

SHARED = "/dev/shm"  # where Linux keeps shared memory and semaphores
LEAST = 10**6  # bytes of shared memory for the semaphores of worker processes


def read_ahead(
    dataset: Dataset, shares: Any, workers: int, *, size: int = 0, pinned: bool = False
) -> Iterable[tuple]:
    """Iterates over `dataset[share]` for each of `shares`, read ahead by `workers` processes.

    They are threads on macOS, and on Linux without shared memory. Values are tuples, and are
    returned unchanged and in order. Without workers, this process reads. `size` is the number of
    bytes of all tensors in a value: it decides whether there is enough shared memory to send them.
    With `pinned` tensors are in memory from which a GPU reads faster.
    """
    # Forked, which is not the default since Python 3.14 and not safe on macOS: else each worker
    # imports torch, which takes seconds in each pass, and copies the names of a million files.
    forked = workers > 0 and free_shared_memory() > LEAST
    if workers > 0 and not forked:
        return in_threads(dataset.__getitem__, shares, workers)
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
        # A worker of a killed reader would wait for ever to send it a large value.
        worker_init_fn=end_with_parent,
        generator=torch.Generator(),  # otherwise the loader draws from the global one
    )
    return map(pickle.loads, loader) if piped else loader


def in_threads(read: Callable, shares: Iterable, threads: int) -> Iterator[Any]:
    """`read(share)` for each share, in order, read ahead by `threads` threads."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        waiting: deque = deque()
        for share in shares:
            waiting.append(pool.submit(read, share))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def free_shared_memory() -> float:
    """Bytes of shared memory that are free, 0 where there is none, as on macOS.

    A worker that finds too little waits for ever.
    """
    return shutil.disk_usage(SHARED).free if os.access(SHARED, os.W_OK) else 0


@cache  # once in a process
def report_pipes() -> None:
    log.info(
        "%s MB of %s are free, too little for the images that workers read ahead: they are sent "
        "through pipes, which is slower. A container gets more with docker run --shm-size=2g",
        f"{free_shared_memory() / 1e6:,.0f}", SHARED,
    )  # fmt: skip

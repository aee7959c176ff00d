"""Memory of a training step on the CPU: kept from step to step."""

import ctypes
import sys

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed; elsewhere nothing happens.

    By default it hands large blocks back to the kernel, which fills each page of the next one with
    zeros: in a training step, where every tensor is freed and made again, up to half of the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_TRIM_THRESHOLD, -1)  # never
        mallopt(M_MMAP_MAX, 0)  # no block from outside the heap

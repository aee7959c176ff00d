"""Allocation of memory on the CPU: blocks are reused in the next step."""

import ctypes
import sys

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory; no effect on other systems.

    By default glibc returns large blocks to the kernel, which fills every page with zeros when it
    is allocated again. In a training step, where all tensors are freed and allocated again, this
    takes up to half of the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_TRIM_THRESHOLD, -1)  # never
        mallopt(M_MMAP_MAX, 0)  # no mmap for large blocks

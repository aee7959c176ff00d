"""Freed memory stays with the process, measured by page faults."""

import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"

PROGRAM = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    sys.path.insert(0, sys.argv[2])
    from classic_cnns.trainer.devices import keep_freed_memory
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**24, np.float32)
before = faults()
for _ in range(10):
    np.ones(2**24, np.float32)  # 64 MiB, 16,384 pages
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_reused_without_page_faults():
    def count(way: str) -> int:
        command = [sys.executable, "-c", PROGRAM, way, str(SRC)]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert count("keep") < count("default") / 10

import multiprocessing
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from classic_cnns.data import workers as module
from classic_cnns.data.workers import read_ahead


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
@pytest.mark.parametrize("workers", [0, 2])
def test_values_are_read_in_order_and_workers_need_no_copy_of_the_data_set(workers):
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)  # the default of Python 3.14
    try:

        class Squares(Dataset):  # cannot be pickled, since it is local
            def __getitem__(self, share):
                return torch.tensor(share) ** 2, [str(number) for number in share]

        found = list(read_ahead(Squares(), [[1, 2], [], [3]], workers))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert [(squares.tolist(), names) for squares, names in found] == [
        ([1, 4], ["1", "2"]), ([], []), ([9], ["3"]),
    ]  # fmt: skip


class Numbers(Dataset):
    def __getitem__(self, share):
        return torch.tensor(share), torch.full((len(share), 1000), 7, dtype=torch.uint8), ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="only there shared memory has a fixed size")
@pytest.mark.parametrize(("free", "shared"), [(64_000_000, False), (10**10, True)])
def test_values_are_sent_through_pipes_if_shared_memory_is_small(monkeypatch, caplog, free, shared):
    """A container of Docker has 64 MB of it, and a worker without room would wait for ever."""
    caplog.set_level("INFO")
    module.report_pipes.cache_clear()
    whole = shutil.disk_usage("/dev/shm")
    for used in (0, 10**6):  # the number changes, but is logged once
        usage = whole._replace(free=free - used)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        found = list(read_ahead(Numbers(), [[1, 2], [3]], 2, size=25_000_000))
        assert [number.tolist() for number, _, _ in found] == [[1, 2], [3]]
        assert [tensor.shape for _, tensor, _ in found] == [(2, 1000), (1, 1000)]
        assert all(tensor.eq(7).all() and tensor.is_shared() == shared for _, tensor, _ in found)
        assert [names for _, _, names in found] == [["a"], ["a"]]
    assert ["64 MB of /dev/shm are free" in text for text in caplog.messages] == [True] * (
        not shared
    )


class Owners(Dataset):
    def __getitem__(self, share):
        return torch.tensor(share), os.getpid(), threading.get_ident()


def test_threads_read_where_there_is_no_shared_memory(monkeypatch, tmp_path):
    """On macOS, and in a container without /dev/shm, where torch cannot start a worker."""
    for name, free in ((tmp_path / "none", None), (tmp_path, 0)):
        monkeypatch.setattr(module, "SHARED", name)
        if free is not None:
            usage = shutil.disk_usage(tmp_path)._replace(free=free)
            monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        found = list(read_ahead(Owners(), [[1, 2], [], [3]] * 4, 2))
        assert [numbers.tolist() for numbers, *_ in found] == [[1, 2], [], [3]] * 4
        assert {pid for _, pid, _ in found} == {os.getpid()}
        assert threading.get_ident() not in {thread for *_, thread in found}


KILLED = """
import multiprocessing, sys, time
from torch.utils.data import Dataset
from classic_cnns.data.workers import read_ahead

class Large(Dataset):
    def __getitem__(self, share):
        return (bytes(10**7),)

values = iter(read_ahead(Large(), range(20), 2))
next(values)
time.sleep(0.5)  # until the workers fill the pipe
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process can end with its parent")
def test_workers_end_with_a_reader_that_is_killed(spawn):
    reader = spawn([sys.executable, "-c", KILLED])
    workers = [Path(f"/proc/{pid}/cmdline") for pid in reader.stdout.readline().split()]
    assert len(workers) == 2 and all(path.read_bytes() for path in workers)
    reader.kill()
    end = time.monotonic() + 10
    while any(path.exists() and path.read_bytes() for path in workers):  # empty: it has ended
        assert time.monotonic() < end
        time.sleep(0.05)

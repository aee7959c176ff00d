import multiprocessing
import sys

import pytest
import torch
from torch.utils.data import Dataset

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

"""`make test-gpu`: tests of all features on this machine's GPU, in a few minutes.

Results are compared with those of the CPU in float64, or with a loop over the formula.
With CLASSIC_CNNS_TEST_GPU=cpu the tests that need no CUDA run on the CPU, to check the tests.
"""

import os

import pytest
import torch
from torch import Tensor

GPU = torch.device(os.environ.get("CLASSIC_CNNS_TEST_GPU", "cuda"))
needs_cuda = pytest.mark.skipif(GPU.type == "cpu", reason="needs CUDA")


def error(got: Tensor, want: Tensor, least: float = 0.0) -> float:
    """The norm of the difference relative to that of `want`, or to `least` if larger."""
    assert got.shape == want.shape
    got, want = got.detach().double(), want.detach().to(got.device).double()
    return ((got - want).norm() / want.norm().clamp(min=least or 1e-300)).item()

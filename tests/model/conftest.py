import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same random weights and images in any order of the tests."""
    torch.manual_seed(0)

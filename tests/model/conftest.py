import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    """So that the tests of nets draw the same weights and images in any order."""
    torch.manual_seed(0)

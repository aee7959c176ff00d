from collections.abc import Iterator

import pytest
import torch

from tests.gpu import GPU


@pytest.fixture(scope="session", autouse=True)
def needs_a_gpu() -> None:
    if GPU.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU, and torch sees none: torch.cuda.is_available() is false")


@pytest.fixture
def exact_float32() -> Iterator[None]:
    """Convolutions in float32; torch's default TensorFloat-32 has only 3 digits."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before

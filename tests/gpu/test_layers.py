"""Local response normalisation on the GPU compared with a loop over the formula."""

import pytest
import torch
from torch import Tensor, nn

from classic_cnns.model.local_response_norm import LocalResponseNorm
from tests import reference
from tests.gpu import GPU, error

pytestmark = pytest.mark.gpu

STRONG = {"size": 5, "alpha": 0.3, "beta": 0.75, "k": 2.0, "divide_by_size": False}
FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2**-8)]  # tolerances


def value_and_gradient(layer: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    return y.detach(), torch.autograd.grad(y, x, g)[0]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("size", "beta", "groups"), [(5, 0.75, 1), (5, 0.75, 2), (9, 0.6, 1)])
def test_response_norm_equals_the_loop(size, beta, groups, dtype, tolerance, memory_format) -> None:
    random = torch.Generator().manual_seed(0)
    x, g = torch.randn(2, 2, 14, 5, 6, generator=random).to(dtype)  # (2, 14, 5, 6) each
    x.requires_grad_()
    towers = x.double().chunk(groups, 1)
    loops = [reference.local_response_norm(t, size, 2.0, 0.3, beta) for t in towers]
    want = torch.cat(loops, 1)
    want_gradient = torch.autograd.grad(want, x, g.double())[0]

    layer = LocalResponseNorm(**STRONG | {"size": size, "beta": beta}, groups=groups)
    on_gpu = x.detach().to(GPU).contiguous(memory_format=memory_format)
    value, gradient = value_and_gradient(layer, on_gpu, g.to(GPU))
    for got, exact in ((value, want), (gradient, want_gradient)):
        assert got.dtype == dtype and got.is_contiguous(memory_format=memory_format)
        assert error(got, exact) < tolerance


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels, groups", [(7, 1), (6, 2)])
def test_the_gradient_of_response_norm(channels, groups, memory_format) -> None:
    x = torch.randn(2, channels, 2, 3, dtype=torch.float64, generator=torch.Generator())
    x = x.to(GPU).contiguous(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradcheck(LocalResponseNorm(**STRONG, groups=groups), x)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_response_norm_with_the_size_of_alexnets_conv1(memory_format: torch.memory_format) -> None:
    random = torch.Generator(GPU).manual_seed(0)
    x, g = torch.randn(2, 64, 96, 55, 55, device=GPU, generator=random)
    x = x.relu().mul(50).contiguous(memory_format=memory_format)
    paper = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0, "groups": 1, "divide_by_size": False}
    torchs = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    got = value_and_gradient(LocalResponseNorm(**paper), x, g)
    for ours, exact in zip(got, value_and_gradient(torchs, x.double(), g.double()), strict=True):
        assert error(ours, exact) < 1e-6

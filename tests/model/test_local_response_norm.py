"""Local response normalisation compared with a loop over the formula and with torch's layer."""

import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from classic_cnns.model import local_response_norm as module
from classic_cnns.model.local_response_norm import LocalResponseNorm
from tests import reference

PAPER = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0, "groups": 1, "divide_by_size": False}
STRONG = PAPER | {"alpha": 0.3}  # a large alpha shows errors in the normalising term
FORMATS = [torch.contiguous_format, torch.channels_last]


def batch(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def value_and_gradient(layer: nn.Module, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    return [y.detach(), torch.autograd.grad(y, x, g)[0]]


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want.double()).abs().max() / want.double().abs().max()).item()


@pytest.mark.fact(
    "b = a / (k + alpha sum a^2)^beta over n neighbouring kernels; the sum is not divided by n",
    source="Krizhevsky 2012, section 3.3",
    code="model/local_response_norm.py:LocalResponseNorm",
)
@pytest.mark.parametrize("channels", [1, 2, 5, 7, 16])
@pytest.mark.parametrize("size", [1, 3, 5, 9])
@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_equals_the_loop(channels: int, size: int, beta: float) -> None:
    x = batch(2, channels, 3, 4, dtype=torch.float64)
    layer = LocalResponseNorm(**STRONG | {"size": size, "beta": beta})
    want = reference.local_response_norm(x, n=size, k=2.0, alpha=0.3, beta=beta)
    torch.testing.assert_close(layer(x), want, rtol=1e-13, atol=0)


@pytest.mark.fact(
    "Torch divides alpha by n, so the printed formula is torch's layer with n times alpha",
    source="Krizhevsky 2012, section 3.3",
    code="model/local_response_norm.py:LocalResponseNorm",
)
@pytest.mark.parametrize("divide_by_size", [False, True])
def test_alpha_is_divided_by_the_size_as_in_torch_or_not(divide_by_size: bool) -> None:
    x, g = batch(3, 12, 5, 5), batch(3, 12, 5, 5, seed=1)
    ours = LocalResponseNorm(**STRONG | {"divide_by_size": divide_by_size})
    other = nn.LocalResponseNorm(5, alpha=0.3 * (1 if divide_by_size else 5), beta=0.75, k=2.0)
    pairs = zip(value_and_gradient(ours, x, g), value_and_gradient(other, x, g), strict=True)
    for got, want in pairs:
        assert relative_error(got, want) < 1e-6


@pytest.mark.fact(
    "The windows of the first and the last kernels are clipped",
    source="Krizhevsky 2012, section 3.3",
    code="model/local_response_norm.py:LocalResponseNorm",
)
@pytest.mark.parametrize("neighbours, channel", [(3, 0), (4, 1), (5, 2), (5, 5), (4, 6), (3, 7)])
def test_windows_are_clipped_at_the_first_and_last_kernels(neighbours: int, channel: int) -> None:
    b = LocalResponseNorm(**STRONG)(torch.full((1, 8, 1, 1), 3.0))
    want = 3.0 / (2.0 + 0.3 * neighbours * 3.0**2) ** 0.75
    assert b[0, channel].item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_conv1_of_alexnet_within_1e_6_of_the_exact_value(
    memory_format: torch.memory_format,
) -> None:
    x = batch(4, 96, 55, 55).relu().mul(50).contiguous(memory_format=memory_format)
    g = batch(4, 96, 55, 55, seed=1)
    got = value_and_gradient(LocalResponseNorm(**PAPER), x, g)
    other = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    for ours, exact in zip(got, value_and_gradient(other, x.double(), g.double()), strict=True):
        assert relative_error(ours, exact) < 1e-6
        assert ours.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels, groups, beta", [(7, 1, 0.75), (6, 2, 0.75), (6, 3, 0.6)])
def test_gradient(
    memory_format: torch.memory_format, channels: int, groups: int, beta: float
) -> None:
    x = batch(2, channels, 2, 3, dtype=torch.float64).contiguous(memory_format=memory_format)
    layer = LocalResponseNorm(**STRONG | {"groups": groups, "beta": beta})
    assert torch.autograd.gradcheck(layer, x.requires_grad_())


@pytest.mark.fact(
    "The net on two GPUs normalises within each tower; this changes the four kernels at the border",
    source="cuda-convnet, its two-GPU layers for ImageNet",
    code="model/local_response_norm.py:LocalResponseNorm",
)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_groups_are_normalised_separately(memory_format: torch.memory_format) -> None:
    x, g = batch(2, 14, 3, 3), batch(2, 14, 3, 3, seed=1)
    x = x.contiguous(memory_format=memory_format)
    together = value_and_gradient(LocalResponseNorm(**STRONG | {"groups": 2}), x, g)
    one_by_one = [
        value_and_gradient(LocalResponseNorm(**STRONG), half, half_g)
        for half, half_g in zip(x.chunk(2, 1), g.chunk(2, 1), strict=True)
    ]
    for both, halves in zip(together, zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(both, torch.cat(halves, 1), rtol=1e-6, atol=1e-7)
    across = LocalResponseNorm(**STRONG)(x)
    differs = ((across - together[0]).abs() > 1e-3).any(0).any(-1).any(-1)
    assert differs.nonzero().flatten().tolist() == [5, 6, 7, 8]  # two on each side


@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_size_of_the_pieces_makes_no_difference(
    memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, g = batch(5, 6, 7, 3), batch(5, 6, 7, 3, seed=1)
    x, layer = x.contiguous(memory_format=memory_format), LocalResponseNorm(**STRONG)
    whole = value_and_gradient(layer, x, g)
    for piece in (1, 200):  # one row per piece; a smaller last piece
        monkeypatch.setattr(module, "PIECE", piece)
        for got, want in zip(value_and_gradient(layer, x, g), whole, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_bfloat16_is_rounded_once(memory_format: torch.memory_format) -> None:
    x = batch(2, 48, 6, 6, dtype=torch.bfloat16).contiguous(memory_format=memory_format)
    g = batch(2, 48, 6, 6, dtype=torch.bfloat16, seed=1)
    layer = LocalResponseNorm(**STRONG)
    exact = value_and_gradient(layer, x.double(), g.double())
    for got, want in zip(value_and_gradient(layer, x, g), exact, strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), want, rtol=2**-8, atol=1e-6)


def test_any_strides_of_input_and_gradient() -> None:
    wide = batch(2, 6, 4, 8)
    x = wide[..., ::2]
    layer = LocalResponseNorm(**STRONG)
    torch.testing.assert_close(layer(x), layer(x.contiguous()))
    leaf = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    layer(leaf).sum().backward()  # the gradient of a sum has strides of 0
    want = value_and_gradient(layer, x, torch.ones_like(x))[1]
    torch.testing.assert_close(leaf.grad, want)
    assert layer(wide[:0]).shape == (0, 6, 4, 8)


def test_the_batch_size_is_free_after_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 1)  # in pieces, their number would be exported
    layer = LocalResponseNorm(**STRONG | {"groups": 2}).eval()
    sizes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(layer, (batch(4, 8, 3, 3),), dynamic_shapes=sizes)
    x = batch(9, 8, 3, 3)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("size", [0, 4, -1])
def test_an_even_window_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size={size} of a response norm: allowed are 1, 3, 5"):
        LocalResponseNorm(**PAPER | {"size": size})


@pytest.fixture(scope="module")
def kernel() -> Iterator:
    """The GPU's kernel, run on the CPU by Triton's interpreter."""
    pytest.importorskip("triton")
    name = "classic_cnns.model.local_response_norm_gpu"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        sys.modules.pop(name, None)
        __import__(name)
        yield sys.modules.pop(name).response_norm


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("size", "beta", "groups"), [(5, 0.75, 1), (5, 0.75, 2), (9, 0.6, 1)])
def test_the_gpu_kernel_equals_the_loop(kernel, size, beta, groups, memory_format) -> None:
    x, g = batch(2, 2, 14, 5, 6, dtype=torch.float64)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    g = g.contiguous(memory_format=memory_format)
    loops = [reference.local_response_norm(t, size, 2.0, 0.3, beta) for t in x.chunk(groups, 1)]
    want = torch.cat(loops, 1)
    constants = size, 0.3, beta, 2.0, groups
    torch.testing.assert_close(kernel(x.detach(), None, *constants), want.detach())
    (slope,) = torch.autograd.grad(want, x, g)
    torch.testing.assert_close(kernel(x.detach(), g, *constants), slope)

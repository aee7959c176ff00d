"""Local response normalisation on GPUs, with one kernel for the value and one for the gradient.

They are written in Triton, which comes with torch's builds for GPUs. The formulas are in
`local_response_norm`. Elements are processed in memory order, in which the neighbours of a kernel
are `inner` elements apart; repeated reads are served by the GPU's caches. The constants are
compiled in, because Triton passes arguments as float32.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

BLOCK = 1024  # elements for each program


@triton.jit
def neighbour(x, at, channel, step, channels: tl.constexpr, inner: tl.constexpr):
    """The elements `step` channels further, in float32 or float64; zeros beyond the ends."""
    there = (channel + step >= 0) & (channel + step < channels)
    value = tl.load(x + at + step * inner, mask=there, other=0.0)
    return value if x.dtype.element_ty == tl.float64 else value.to(tl.float32)


@triton.jit
def scale(
    x, at, channel, step, alpha: tl.constexpr, k: tl.constexpr,
    half: tl.constexpr, channels: tl.constexpr, inner: tl.constexpr,
):  # fmt: skip
    """s of the elements `step` channels further."""
    a = neighbour(x, at, channel, step, channels, inner)
    total = a * a
    for i in tl.static_range(1, half + 1):
        left = neighbour(x, at, channel, step - i, channels, inner)
        right = neighbour(x, at, channel, step + i, channels, inner)
        total += left * left + right * right
    return k + alpha * total


@triton.jit
def value_kernel(
    x, out, count, alpha: tl.constexpr, beta: tl.constexpr, k: tl.constexpr,
    half: tl.constexpr, channels: tl.constexpr, inner: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < count
    channel = tl.where(inside, at // inner % channels, -(2**20))  # out of range: nothing is read
    a = neighbour(x, at, channel, 0, channels, inner)
    s = scale(x, at, channel, 0, alpha, k, half, channels, inner)
    tl.store(out + at, a * tl.exp2(-beta * tl.log2(s)), mask=inside)


@triton.jit
def gradient_kernel(
    x, grad, out, count, alpha: tl.constexpr, beta: tl.constexpr, k: tl.constexpr,
    half: tl.constexpr, channels: tl.constexpr, inner: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < count
    channel = tl.where(inside, at // inner % channels, -(2**20))
    s = scale(x, at, channel, 0, alpha, k, half, channels, inner)
    direct = neighbour(grad, at, channel, 0, channels, inner) * tl.exp2(-beta * tl.log2(s))
    a = neighbour(x, at, channel, 0, channels, inner)
    indirect = direct * a / s
    for i in tl.static_range(1, half + 1):
        for side in tl.static_range(-1, 2, 2):
            s = scale(x, at, channel, side * i, alpha, k, half, channels, inner)
            g = neighbour(grad, at, channel, side * i, channels, inner)
            b = neighbour(x, at, channel, side * i, channels, inner)
            indirect += g * b * tl.exp2(-(beta + 1) * tl.log2(s))
    tl.store(out + at, direct - 2 * alpha * beta * a * indirect, mask=inside)


@torch.library.custom_op("classic_cnns::response_norm", mutates_args=())
def response_norm(
    x: Tensor, grad: Tensor | None, size: int, alpha: float, beta: float, k: float, groups: int
) -> Tensor:
    """b for x (B, C, H, W), or dE/dx if `grad` is dE/db; both dense and in the layout of x."""
    out = torch.empty_like(x)
    channels, inner = x.shape[1] // groups, x.stride(1)
    grid = (triton.cdiv(x.numel(), BLOCK),)
    constants = {"half": size // 2, "channels": channels, "inner": inner, "block": BLOCK}
    with torch.cuda.device_of(x):
        if grad is None:
            value_kernel[grid](x, out, x.numel(), alpha, beta, k, **constants)
        else:
            gradient_kernel[grid](x, grad, out, x.numel(), alpha, beta, k, **constants)
    return out


@response_norm.register_fake
def _(x, grad, size, alpha, beta, k, groups):
    return torch.empty_like(x)

"""Local response normalisation across kernel maps.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks,
NIPS 2012, section 3.3. The activity `a_i` of kernel `i` at a position is divided by a power of the
sum of squares of its neighbours, the kernels `i - n//2 ... i + n//2`, at the same position:

    b_i = a_i / s_i^beta        s_i = k + alpha * sum_{|j - i| <= n//2} a_j^2

Torch's layer consists of several operations, each of which reads and writes the whole batch, also
in the backward pass. Here forward and backward are closed formulas, computed on pieces that fit
into a processor's cache, and on a GPU by one kernel each.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Elements per thread and piece: 1 MiB in float32, so that the temporaries stay in cache.
PIECE = 2**18
HAS_TRITON = find_spec("triton") is not None


class LocalResponseNorm(nn.Module):
    """The formula with n = `size`, which is odd, in each of `groups` equal groups of channels.

    No window crosses the border of two groups, which are the towers. With `divide_by_size` alpha
    multiplies sum / n, as in cuda-convnet and `torch.nn.LocalResponseNorm`, else the sum, as in the
    paper.
    """

    def __init__(
        self, *, size: int, alpha: float, beta: float, k: float, groups: int, divide_by_size: bool
    ) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size={size} of a response norm: allowed are 1, 3, 5, ...")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k
        self.groups, self.divide_by_size = groups, divide_by_size

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape, dtype and memory format."""
        alpha = self.alpha / self.size if self.divide_by_size else self.alpha
        return _Normalise.apply(x, self.size, alpha, self.beta, self.k, self.groups)


class _Normalise(torch.autograd.Function):
    """b_i = a_i / s_i^beta and its gradient.

    `db_i/da_j` is `s_i^-beta` where i = j, less `2 alpha beta a_i a_j s_i^(-beta-1)` where
    |i - j| <= n//2. The window is symmetric, so the gradient needs the same sum as the value:

        dE/da_j = g_j s_j^-beta - 2 alpha beta a_j sum_{|i - j| <= n//2} g_i b_i / s_i

    Only the input is saved for the backward pass: computing s again in cache is as fast as reading
    it from memory.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float, groups: int
    ) -> Tensor:
        x = x.contiguous(memory_format=_layout(x))
        ctx.save_for_backward(x)
        ctx.constants = size, alpha, beta, k, groups
        if _fits_gpu_kernel(x):
            from classic_cnns.model.local_response_norm_gpu import response_norm

            return response_norm(x, None, *ctx.constants)
        y = torch.empty_like(x)
        for a, b in _pieces(groups, x, y):
            torch.mul(a, _power(_scale(a, size, alpha, k), beta), out=b)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        size, alpha, beta, k, groups = ctx.constants
        grad = grad.contiguous(memory_format=_layout(x))
        if _fits_gpu_kernel(x):
            from classic_cnns.model.local_response_norm_gpu import response_norm

            return response_norm(x, grad, *ctx.constants), None, None, None, None, None
        grad_x = torch.empty_like(x)
        for a, g, out in _pieces(groups, x, grad, grad_x):
            s = _scale(a, size, alpha, k)
            direct = _power(s, beta).mul_(g)  # g s^-beta
            indirect = _window_sum((direct * a).div_(s), size)  # sum of g b / s
            torch.addcmul(direct, a, indirect, value=-2 * alpha * beta, out=out)
        return grad_x, None, None, None, None, None


def _fits_gpu_kernel(x: Tensor) -> bool:
    """Whether `local_response_norm_gpu` can be used, which counts elements in 32 bits."""
    return HAS_TRITON and x.is_cuda and 0 < x.numel() < 2**31 - 2**20


def _layout(x: Tensor) -> torch.memory_format:
    """Channels last if the tensor is stored in this format, else contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _pieces(groups: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Cut (B, C, H, W) tensors of one layout, without copying, into (rows, C / groups, inner).

    A row is one tower of one image (inner = H * W), or with channels last one tower of one pixel
    (inner = 1). So the neighbours of a kernel, all in its tower, are along dimension 1.
    """
    batch, channels, height, width = tensors[0].shape
    if tensors[0].is_contiguous():
        shape = batch * groups, channels // groups, height * width
    else:
        shape = batch * height * width * groups, channels // groups, 1
        tensors = tuple(t.permute(0, 2, 3, 1) for t in tensors)
    views = [t.view(shape) for t in tensors]
    if tensors[0].is_cuda or torch.compiler.is_compiling():
        return [tuple(views)]  # a compiler makes its own blocks
    rows = max(1, PIECE * torch.get_num_threads() // (shape[1] * shape[2]))
    return list(zip(*(view.split(rows) for view in views), strict=True))


def _window_sum(x: Tensor, size: int) -> Tensor:
    """Sum (rows, C, inner) over windows of `size` channels, clipped at the ends."""
    total = x.clone()
    for shift in range(1, size // 2 + 1):
        total[:, shift:] += x[:, :-shift]
        total[:, :-shift] += x[:, shift:]
    return total


def _scale(a: Tensor, size: int, alpha: float, k: float) -> Tensor:
    """Compute s, in float32 also for half precision: squares in bfloat16 have 2 to 3 digits."""
    a = a if a.dtype == torch.float64 else a.float()
    return _window_sum(a.square(), size).mul_(alpha).add_(k)


def _power(s: Tensor, beta: float) -> Tensor:
    """Compute s^-beta."""
    if beta == 0.75 and not s.is_cuda:  # as in the paper; on CPUs two roots are faster than a power
        root = s.rsqrt()
        return root.sqrt().mul_(root)
    return s.pow(-beta)

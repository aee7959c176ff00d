"""Stochastic diagonal Levenberg-Marquardt, the optimizer of LeNet-5.

LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, Proc. IEEE
1998, section III.B and Appendix C, whose equations are numbered below.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

log = logging.getLogger(__name__)


class StochasticDiagonalLM(Optimizer):
    """Gradient descent in which weight k has a rate of its own, eta / (mu + h_k) (eq. 18 and 21).

    h_k is the second derivative of the error along weight k, estimated before each pass over the
    data by `estimate`, then kept. `lr` is the paper's global rate eta, which schedules change.
    """

    samples = 500  # "on 500 samples", section III.B

    def __init__(self, params: ParamsT, *, lr: float, mu: float) -> None:
        super().__init__(params, {"lr": lr, "mu": mu})

    def estimate(self, net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set every h_k from the first images (B, C, H, W) of `batches`, before a pass."""
        images, count = [], 0
        for part, _ in batches:
            images.append(part)
            count += len(part)
            if count >= self.samples:
                break
        names = {parameter: name for name, parameter in net.named_parameters()}
        curvature = gauss_newton_diagonal(net, torch.cat(images)[: self.samples])
        lowest, highest = inf, 0.0
        for group in self.param_groups:
            for weight in group["params"]:
                h = self.state[weight]["curvature"] = curvature[names[weight]]
                lowest = min(lowest, group["lr"] / (group["mu"] + h.max().item()))
                highest = max(highest, group["lr"] / (group["mu"] + h.min().item()))
        log.info("rates of single weights in this pass: %.1e to %.1e", lowest, highest)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every weight that has a gradient; return what the closure, if any, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = group["params"]
            damped = [self.state[weight]["curvature"] + group["mu"] for weight in weights]
            gradients = [weight.grad for weight in weights]
            torch._foreach_addcdiv_(weights, gradients, damped, value=-group["lr"])
        return loss


def gauss_newton_diagonal(net: Any, images: Tensor) -> dict[str, Tensor]:
    """The mean over images (B, C, H, W) of h_k for each parameter of `net`, by its name.

    For the error of eq. 8, whose second derivative with respect to each unit that the RBF layer
    compares is 2. From there back to the image with the products of unlike weights and the second
    derivative of the squashing function left out (eq. 23, 25, 27). `net` gives those units by
    `net.features`; its layers with weights must be linear in these and in their input.
    """
    h = {name: torch.zeros_like(parameter) for name, parameter in net.named_parameters()}
    with squared_backward(net, h):
        units = net.features(images.requires_grad_())
        units.backward(torch.full_like(units, 2 / len(images)))
    return h


@contextmanager
def squared_backward(net: nn.Module, h: dict[str, Tensor]) -> Iterator[None]:
    """Let `backward` carry second derivatives through the layers of `net`, and add those to `h`.

    A second derivative comes through a weight u as u^2 d2E/da^2 (eq. 27) and reaches the weight as
    x^2 d2E/da^2 (eq. 25): what the gradients of the same layer are for squared weights and inputs.
    So a weight that serves at many places gets the sum over them (eq. 23).
    """
    layers = [
        (name, layer)
        for name, layer in net.named_modules()
        if not list(layer.children()) and layer is not net
    ]
    for name, layer in layers:
        own = {key: h[f"{name}.{key}"] for key, _ in layer.named_parameters()}
        layer.forward = _SquaredBackward.through(layer, own)
    try:
        yield
    finally:
        for _, layer in layers:
            del layer.forward  # the class's own again


class _SquaredBackward(torch.autograd.Function):
    @staticmethod
    def through(layer: nn.Module, h: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        plain = layer.forward
        return lambda x: _SquaredBackward.apply(x, layer, plain, h)

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module, plain: Callable, h: dict) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer, ctx.plain, ctx.h = layer, plain, h
        return plain(x)

    @staticmethod
    def backward(ctx: Any, h_out: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if not ctx.h:  # a squashing function: f'(a)^2, eq. 27
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (slope,) = torch.autograd.grad(ctx.plain(x).sum(), x)
            return slope.square() * h_out, None, None, None
        with torch.enable_grad():
            x = x.detach().square().requires_grad_()
            weights = {
                name: weight.detach().square().requires_grad_()
                for name, weight in ctx.layer.named_parameters()
            }
            own = ctx.layer.forward
            ctx.layer.forward = ctx.plain
            y = torch.func.functional_call(ctx.layer, weights, (x,))
            ctx.layer.forward = own
            h_x, *h_weights = torch.autograd.grad(y, [x, *weights.values()], h_out)
        for name, value in zip(weights, h_weights, strict=True):
            ctx.h[name] += value
        return h_x, None, None, None

"""Stochastic diagonal Levenberg-Marquardt, the optimizer of LeNet-5.

LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, Proc. IEEE
1998, section III.B and Appendix C, whose equations are numbered below.
"""

import logging
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

log = logging.getLogger(__name__)


class StochasticDiagonalLM(Optimizer):
    """Gradient descent with a separate rate for each weight k, eta / (mu + h_k) (eq. 18 and 21).

    h_k is the second derivative of the error with respect to weight k. `estimate` estimates it
    before each epoch; it is constant during the epoch. `lr` is the paper's global rate eta, which
    schedules change.
    """

    samples = 500  # "on 500 samples", section III.B

    def __init__(self, params: ParamsT, *, lr: float, mu: float) -> None:
        super().__init__(params, {"lr": lr, "mu": mu})

    def estimate(
        self,
        net: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        ranks: int = 1,
        mean: Callable[[Tensor], Any] = lambda h: h,
    ) -> None:
        """Estimate all h_k from the first images (B, C, H, W) of `batches`, before an epoch.

        With several `ranks` each uses its share of the samples; `mean` averages over the ranks.
        """
        images, count, samples = [], 0, self.samples // ranks
        for part, _ in batches:
            images.append(part)
            count += len(part)
            if count >= samples:
                break
        curvature = gauss_newton_diagonal(net, torch.cat(images)[:samples])
        rates = []
        for group in self.param_groups:
            for weight in group["params"]:
                h = self.state[weight]["curvature"] = mean(curvature[weight])
                rates.append(group["lr"] / (group["mu"] + h.flatten()))
        every = torch.cat(rates)
        log.info(
            "learning rates of the weights in this epoch: %.1e to %.1e", every.min(), every.max()
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient; returns the result of the closure, if any."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            damped = [self.state[weight]["curvature"] + group["mu"] for weight in weights]
            gradients = [weight.grad for weight in weights]
            torch._foreach_addcdiv_(weights, gradients, damped, value=-group["lr"])
        return loss


def gauss_newton_diagonal(net: Any, images: Tensor) -> dict[nn.Parameter, Tensor]:
    """The mean over images (B, C, H, W) of h_k for each parameter of `net`.

    The error is that of eq. 8, whose second derivative with respect to each unit that the RBF layer
    compares is 2. It is propagated back to the image as in eq. 23, 25 and 27, without the products
    of different weights and without the second derivative of the squashing function. `net.features`
    must return those units; layers with weights must be linear in their weights and in their input.
    """
    hooks = [
        layer.register_forward_hook(partial(with_squares, deepcopy(layer)))
        for layer in net.modules()
        if not list(layer.children())
    ]
    units = net.features(images)
    for hook in hooks:
        hook.remove()
    weights = list(net.parameters())
    start = torch.full_like(units, 2 / len(images))
    h = torch.autograd.grad(units, weights, start, materialize_grads=True)
    return dict(zip(weights, h, strict=True))


def with_squares(plain: nn.Module, layer: nn.Module, inputs: tuple[Tensor], y: Tensor) -> Tensor:
    """The output `y` of a layer, with second derivatives in place of first ones in backward.

    A second derivative passes a weight u as u^2 d2E/da^2 (eq. 27), and that of the weight is x^2
    d2E/da^2 (eq. 25). These are the gradients of the same layer with squared weights and inputs. A
    shared weight gets the sum over all places (eq. 23). Through the squashing function it becomes
    f'(a)^2 d2E/dx^2 (eq. 27). `plain` is the same layer without this hook.
    """
    (x,) = inputs
    weights = dict(layer.named_parameters())
    if weights:
        squares = {name: square(weight) for name, weight in weights.items()}
        other = torch.func.functional_call(plain, squares, (square(x),))
    else:
        a = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(plain(a).sum(), a)
        other = slope.square() * x
    return y.detach() + (other - other.detach())


def square(x: Tensor) -> Tensor:
    """The square of x, with a derivative of 1 with respect to x."""
    return x.detach().square() + (x - x.detach())

"""Our response normalisation compared with torch's."""

import time

import torch

from classic_cnns.model.local_response_norm import LocalResponseNorm
from classic_cnns.trainer.devices import keep_freed_memory
from tests.bench import Row, compare


def layers(rounds: int) -> list[Row]:
    """Forward and backward on (64, 96, 55, 55) float32, conv1's maps of 64 images."""
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(64, 96, 55, 55, device=device, requires_grad=True)
    gradient = torch.randn_like(x)
    ours = LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=2.0, groups=1, divide_by_size=True)
    theirs = torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)

    def seconds(layer: torch.nn.Module) -> float:
        start = time.perf_counter()
        layer(x).backward(gradient)
        x.grad[0, 0, 0, 0].item()  # waits for a GPU
        return time.perf_counter() - start

    goal = ">= 4" if device == "cpu" else ">= 1"
    names = ("ours", "nn.LocalResponseNorm")
    what = f"response normalisation, {device.upper()}"
    return [compare(what, lambda: seconds(ours), lambda: seconds(theirs), goal, names, rounds)]

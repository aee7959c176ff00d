"""Training steps of the larger nets in our runs, compared with plain torch in float32.

Our side uses the precision, memory format and memory settings that a run chooses on this machine.
The other side is the same net with torch's layers in float32; on a GPU, AlexNet is compared with
torchvision's net under autocast in channels last. Each side has its own process, which waits while
the other one measures.
"""

import subprocess
import sys
import time
from collections.abc import Iterable
from statistics import median

import torch
import torchvision
from torch import nn

from classic_cnns.model.alexnet import AlexNet
from classic_cnns.model.local_response_norm import LocalResponseNorm
from classic_cnns.trainer.devices import choose_precision, keep_freed_memory
from tests.bench import Row, row
from tests.recipes import compose, recipe

# net, images in a batch, overrides, goal
NETS = [
    (
        "AlexNet at 227",
        64,
        ["model=alexnet", "model.input.size=227", "model.net.num_classes=1000"],
        ">= 3.5",
    ),
    ("convnet_cifar10 13pct", 128, ["model=convnet_cifar10_13pct"], ">= 2"),
    ("alexnet_cifar10", 500, ["model=alexnet_cifar10"], ">= 1.8"),
]
STEPS = 3  # their median is one measurement


def with_torch_norm(net: nn.Module) -> nn.Module:
    for name, layer in net.named_children():
        if isinstance(layer, LocalResponseNorm):
            alpha = layer.alpha * (1 if layer.divide_by_size else layer.size)
            setattr(net, name, nn.LocalResponseNorm(layer.size, alpha, layer.beta, layer.k))
    return net


def serve(ours: bool, batch_size: int, overrides: list[str]) -> None:
    """For each line of the standard input, print the median seconds of a few training steps."""
    if ours:
        keep_freed_memory()
    words = " ".join(overrides)
    made, trainer = recipe(words), compose(words).trainer
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = made.net.to(device)
    half = ours and choose_precision(trainer.precision, trainer.accelerator) == "bf16-mixed"
    if not ours:
        net = with_torch_norm(net)
        if device == "cuda" and isinstance(net, AlexNet):
            net, half = torchvision.models.alexnet(num_classes=1000).to(device), True
    if half:
        net.to(memory_format=torch.channels_last)
    optimizer = made.make_optimizer(net.named_parameters())
    x = torch.randn(batch_size, *made.shape, device=device)
    y = torch.randint(10, (batch_size,), device=device)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            error = made.loss(net(x), y)
        error.backward()
        optimizer.step()
        error.item()  # waits for a GPU
        return time.perf_counter() - start

    step()
    for _ in sys.stdin:
        print(median(step() for _ in range(STEPS)), flush=True)


def steps(rounds: int) -> Iterable[Row]:
    return (compare(*net, rounds) for net in NETS)


def compare(name: str, batch_size: int, overrides: list[str], goal: str, rounds: int) -> Row:
    def start(side: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "tests.bench.steps", side, str(batch_size), *overrides]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1)

    def seconds(side: subprocess.Popen) -> float:
        side.stdin.write("\n")
        return float(side.stdout.readline())

    with start("ours") as ours, start("torch") as other:
        times = [(seconds(ours), seconds(other)) for _ in range(rounds + 1)][1:]
        ours.stdin.close()
        other.stdin.close()
    return row(f"step of {name}, batch {batch_size}", times, goal, ("ours", "torch"))


if __name__ == "__main__":
    serve(sys.argv[1] == "ours", int(sys.argv[2]), sys.argv[3:])

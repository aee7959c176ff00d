"""`python -m tests.bench.gpu`: the most important speeds on a GPU, in a minute.

Both sides of a row run in turn, and the row has the medians of five rounds. Without a GPU, all rows
run with small sizes, only to check that they work.
"""

import time
from collections.abc import Callable
from copy import deepcopy

import torch
import torchvision
from torch import nn

from classic_cnns.data.transforms import ColourNoise, RandomCrop, RandomFlip, RandomShift
from classic_cnns.model.local_response_norm import LocalResponseNorm
from tests.bench import HEAD, Row, compare, per_second
from tests.recipes import Recipe, recipe

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
IMAGES = 256 if GPU else 2
REPEATS = 10 if GPU else 1  # in one timing, so that the wait at its end matters little


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """A function that measures the seconds of one call of `work`."""

    def seconds() -> float:
        wait()
        start = time.perf_counter()
        for _ in range(REPEATS):
            work()
        wait()
        return (time.perf_counter() - start) / REPEATS

    return seconds


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def alexnet() -> Row:
    """Training steps of our net, with normalisation and two towers, and of torchvision's."""
    made = recipe("model=alexnet model.net.num_classes=1000")
    images = torch.randn(IMAGES, 3, 224, 224, device=DEVICE)
    labels = torch.randint(1000, (IMAGES,), device=DEVICE)

    def step_of(net: nn.Module) -> Callable[[], None]:
        net.to(DEVICE, memory_format=torch.channels_last)
        optimizer = made.make_optimizer(net.named_parameters())

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(DEVICE, torch.bfloat16):
                error = made.loss(net(images), labels)
            error.backward()
            optimizer.step()

        return step

    ours, other = step_of(made.net), step_of(torchvision.models.alexnet(num_classes=1000))
    what = f"AlexNet in bfloat16, channels last, batch {IMAGES}"
    names = ("ours", "torchvision's")
    return per_second(compare(what, timed(ours), timed(other), ">= 1", names), IMAGES, names)


def response_norm(dtype: torch.dtype, memory_format: torch.memory_format) -> Row:
    """Forward and backward at the size of conv1's maps."""
    dtype = dtype if GPU else torch.float32  # the only one of torch's layer on CPUs
    x = torch.randn(IMAGES, 96, 55, 55, device=DEVICE, dtype=dtype)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    gradient = torch.randn_like(x)
    ours = LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=2.0, groups=1, divide_by_size=True)
    other = nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)

    def both_ways(layer: nn.Module) -> Callable[[], float]:
        return timed(lambda: torch.autograd.grad(layer(x), x, gradient))

    layout = "channels last" if memory_format == torch.channels_last else "contiguous"
    what = f"response normalisation, {str(dtype).partition('.')[2]}, {layout}"
    names = ("ours", "nn.LocalResponseNorm")
    return compare(what, both_ways(ours), both_ways(other), ">= 1", names)


def augmentation(what: str, steps: list, count: int, side: int) -> Row:
    """Augmentations of uint8 images on the GPU compared with the CPU."""
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)

    def all_of(device: str) -> Callable[[], float]:
        on_device, augmentations = images.to(device), deepcopy(steps)
        for step in augmentations:
            if hasattr(step, "partial_fit"):
                step.partial_fit(on_device)
        noises = [torch.rand(count, step.draws, device=device) for step in augmentations]

        def work() -> None:
            result = on_device
            for step, noise in zip(augmentations, noises, strict=True):
                result = step(result, noise)

        return timed(work)

    names = (DEVICE.upper(), "CPU")
    row = compare(what, all_of(DEVICE), all_of("cpu"), ">= 10", names)
    return per_second(row, count, names)


def lenet5() -> Recipe:
    made = recipe("model=lenet5")
    return made._replace(net=made.net.to(DEVICE))


def step_of(made: Recipe, wrap: Callable = lambda forward: forward) -> Callable[[], None]:
    """A training step of a recipe of LeNet-5, in batches of 128."""
    images = torch.rand(128, 1, 32, 32, device=DEVICE)
    labels = torch.randint(10, (128,), device=DEVICE)
    optimizer = made.make_optimizer(made.net.named_parameters())
    forward = wrap(lambda: made.loss(made.net(images), labels))

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        nn.utils.clip_grad_norm_(made.net.parameters(), 5.0)
        optimizer.step()

    return step


def graphed(step: Callable[[], None]) -> Callable[[], None]:
    """Record the whole step as a CUDA graph; each replay updates the weights."""
    if not GPU:
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def compiled_or_recorded(how: str) -> Row:
    """The plain step, as in our runs, compared with the same step compiled or recorded."""
    backend = "inductor" if GPU else "eager"
    if how == "CUDA graph":
        other = graphed(step_of(lenet5()))
    else:
        other = step_of(lenet5(), lambda forward: torch.compile(forward, backend=backend))
    what = "step of LeNet-5, batch 128"
    return compare(what, timed(step_of(lenet5())), timed(other), "<= 1.1", ("plain", how))


ROWS: list[Callable[[], Row]] = [
    alexnet,
    lambda: response_norm(torch.bfloat16, torch.channels_last),
    lambda: response_norm(torch.float32, torch.contiguous_format),
    lambda: augmentation("shift and flip, 32 x 32", [RandomShift(4), RandomFlip()], 8 * IMAGES, 32),
    lambda: augmentation(
        "crop, flip and colour, 256 x 256",
        [RandomCrop(224), RandomFlip(), ColourNoise(0.1)],
        IMAGES,
        256,
    ),
    lambda: compiled_or_recorded("torch.compile"),
    lambda: compiled_or_recorded("CUDA graph"),
]

if __name__ == "__main__":
    name = torch.cuda.get_device_name() if GPU else "no GPU: small sizes, times mean nothing"
    print(f"{name}, torch {torch.__version__}, medians of 5\n", flush=True)
    print(HEAD, flush=True)
    for make in ROWS:
        try:
            r = make()
        except RuntimeError as error:  # the other rows are still measured
            print(f"| failed: {' '.join(str(error).split())[:300]} | | | | |", flush=True)
        else:
            print(r, flush=True)

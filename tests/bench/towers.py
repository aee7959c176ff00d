"""The towers of `alexnet_small` in two processes, compared with one process and with DDP.

There is no goal. All train on batches of 128 images in float32: one process uses all cores, each of
two uses half of them.
"""

import os
import sys
import time
from statistics import median

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from classic_cnns.trainer import two_towers
from classic_cnns.trainer.devices import keep_freed_memory
from tests.bench import Row, row
from tests.bench.ddp import processes
from tests.recipes import recipe

STEPS, BATCH = 10, 128
exchange = two_towers.gather


def repeat_half(half, mesh, dim, size, gradient) -> torch.Tensor:
    """Replaces the exchange: repeats the half of this process, without communication."""
    return torch.cat([half, half], dim)


def measure(rounds: int) -> list[list[float]]:
    """Seconds per step of each variant in each round.

    One process has one variant. Two processes have three: DDP, two towers, and two towers without
    communication.
    """
    keep_freed_memory()  # as a run does
    size = int(os.environ["WORLD_SIZE"])
    made = [recipe("model=alexnet_small") for _ in range(size)]
    nets = [each.net for each in made]
    variants = [(nets[0], BATCH, exchange)]
    if size > 1:
        dist.init_process_group("gloo")
        two_towers.split_towers(nets[1], init_device_mesh("cpu", (2,)))
        shared = DistributedDataParallel(nets[0], gradient_as_bucket_view=True)
        variants = [
            (shared, BATCH // 2, exchange),
            (nets[1], BATCH, exchange),
            (nets[1], BATCH, repeat_half),
        ]
    optimizers = [made[0].make_optimizer(net.parameters()) for net, *_ in variants]
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH) % 10

    def seconds(variant, optimizer) -> float:
        net, batch, two_towers.gather = variant
        start = time.perf_counter()
        for _ in range(STEPS):
            optimizer.zero_grad()
            cross_entropy(net(images[:batch]), labels[:batch]).backward()
            optimizer.step()
        return (time.perf_counter() - start) / STEPS

    pairs = list(zip(variants, optimizers, strict=True))
    return [[seconds(*each) for each in pairs] for _ in range(rounds + 1)][1:]


def towers(rounds: int) -> list[Row]:
    one = [times[0] for times in processes(1, rounds, "tests.bench.towers")]
    shared, ours, separate = zip(*processes(2, rounds, "tests.bench.towers"), strict=True)
    communication = 1 - median(separate) / median(ours)
    names = (f"two towers, {communication:.0%} of the time exchanging,", "one process")
    return [
        row("alexnet_small step, CPU", list(zip(ours, one, strict=True)), "none", names),
        row(
            "alexnet_small step, CPU",
            list(zip(shared, one, strict=True)),
            "none",
            ("DDP", "one process"),
        ),
    ]


if __name__ == "__main__":
    for times in measure(int(sys.argv[1])):
        print(*times)

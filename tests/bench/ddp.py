"""Two processes that share each batch, compared with one, and the time that they communicate.

There is no goal, because two processes on the cores of one machine gain little. Both sides train
LeNet-5 in batches of 128: one process uses all cores, each of two uses half of them.
"""

import os
import subprocess
import sys
import time
from statistics import median

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from classic_cnns.callbacks.stop import StopOnSignal
from classic_cnns.model.lenet5 import LeNet5, MAPLoss
from classic_cnns.trainer.devices import free_port
from tests.bench import Row, row

STEPS = 50


def lightning_flag() -> None:
    """The exchange of Lightning's training loop before each batch."""
    flag = torch.tensor([0])
    dist.broadcast(flag, src=0)
    flag.item()


def measure(rounds: int) -> list[list[float]]:
    """Seconds per step of each variant in each round.

    One process has one variant. Two processes have four: DDP, no communication, DDP with our stop
    flag, and DDP with Lightning's.
    """
    torch.manual_seed(0)
    size = int(os.environ["WORLD_SIZE"])
    images, labels = torch.rand(128 // size, 1, 32, 32), torch.arange(128 // size) % 10
    net, loss = LeNet5(), MAPLoss(j=0.1)
    variants: list = [(net, lambda: None)]
    if size > 1:
        dist.init_process_group("gloo")
        stop = StopOnSignal()
        stop.on_train_start(None, None)
        # As in the classifier: buffers are not broadcast at each step.
        net._ddp_params_and_buffers_to_ignore = [name for name, _ in net.named_buffers()]
        shared = DistributedDataParallel(net, gradient_as_bucket_view=True)
        variants = [(shared, lambda: None), (net, lambda: None)]
        variants += [(shared, stop.stop_agreed), (shared, lightning_flag)]
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, fused=True)

    def seconds(forward, flag) -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(forward(images), labels).backward()
            optimizer.step()
            flag()
        return (time.perf_counter() - start) / STEPS

    return [[seconds(*variant) for variant in variants] for _ in range(rounds + 1)][1:]


def processes(count: int, rounds: int, module: str = "tests.bench.ddp") -> list[list[float]]:
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env |= {"WORLD_SIZE": str(count)}
    env["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // count))
    command = [sys.executable, "-m", module, str(rounds)]
    started = [
        subprocess.Popen(command, env=env | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(count)
    ]
    printed = [process.communicate()[0] for process in started]
    return [[float(word) for word in line.split()] for line in printed[0].splitlines()]


def ddp(rounds: int) -> list[Row]:
    one, two = processes(1, rounds), processes(2, rounds)
    shared, separate, ours, lightning = ([times[variant] for times in two] for variant in range(4))
    pairs = list(zip(shared, [times[0] for times in one], strict=True))
    flags = [
        row(f"LeNet-5 step, CPU, {what}", list(zip(times, shared, strict=True)), "none", names)
        for what, times, names in (
            ("two processes stop together", ours, ("with our flag", "without")),
            ("two processes stop together", lightning, ("with Lightning's flag", "without")),
        )
    ]
    exchange = 1 - median(separate) / median(shared)
    names = (f"two processes, {exchange:.0%} of the time exchanging gradients,", "one process")
    return [row("LeNet-5 step, CPU", pairs, "none", names), *flags]


if __name__ == "__main__":
    for times in measure(int(sys.argv[1])):
        print(*times)

"""A signal to stop ends training after a checkpoint, at the same step on all ranks."""

import time
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback


class Stopped(SystemExit):
    """A signal ended the run; exits as shells have it."""

    code: int

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Stop(Callback):
    """Is to `receive` the signals; `agreed` says at which step they are heard.

    Outside of training, and at the second signal, the run ends at once. Lightning's own handler
    would wait for the other ranks inside the handler, where they need not come.
    """

    interval = 0.1  # seconds

    def __init__(self) -> None:
        self.number = 0  # of the signal that was received
        self.training = False
        self.group: Any = None  # of the ranks, if there are several
        self.flag = torch.tensor(0)
        self.left = self.steps = 0  # until the ranks ask again, and since they have asked
        self.asked = time.monotonic()
        self.work: Any = None  # the exchange of the flags that is under way

    def receive(self, number: int, _) -> None:
        if self.number or not self.training:
            raise Stopped(number)
        self.number = number

    def on_train_start(self, trainer, module) -> None:
        self.training = True
        # On the CPU, since to look at a GPU's numbers at each step would hold it up.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def on_train_end(self, trainer, module) -> None:
        self.training = False
        if self.number:  # since the last step
            raise Stopped(self.number)

    def agreed(self) -> bool:
        """Whether any rank has received a signal; asked after each step, and the same on all ranks.

        To ask costs a seventh of a LeNet step, so they ask every `interval` seconds, and agree with
        each answer how many steps that is. The answer travels while the next step computes.
        """
        if self.group is None:
            return self.number > 0
        if self.work:
            self.work.wait()
            self.work = None
            number, steps = self.flag.tolist()
            if number:
                self.number = number
                return True
            self.left = -steps
        self.left -= 1
        self.steps += 1
        if self.left <= 0:
            now = time.monotonic()
            fit = int(self.interval * self.steps / (now - self.asked))  # steps at the pace of late
            self.asked, self.steps = now, 0
            self.flag = torch.tensor([self.number, -max(1, fit)])  # of which the fewest
            self.work = dist.all_reduce(self.flag, dist.ReduceOp.MAX, self.group, async_op=True)
        return False

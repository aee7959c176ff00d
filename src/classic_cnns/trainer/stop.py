"""Ctrl-C and SIGTERM end training after a checkpoint, at the same step on all ranks."""

import signal
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
    """As a context it takes the two signals; `agreed` says at which step they are heard.

    Outside of training, and at the second signal, the run ends at once. Lightning's own handler
    would wait for the other ranks inside the handler, where they need not come.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal that was received
        self.training = False
        self.group: Any = None  # of the ranks, if there are several
        self.flag = torch.tensor(0)
        self.work: Any = None  # the exchange of the flags that is under way

    def __enter__(self) -> "Stop":
        signals = (signal.SIGINT, signal.SIGTERM)
        heard = [n for n in signals if signal.getsignal(n) != signal.SIG_IGN]
        self.before = {number: signal.signal(number, self.receive) for number in heard}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

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
        """Whether any rank had received a signal a step ago; asked after each step.

        The answer travels while the next step computes, so that nobody waits for it.
        """
        if self.group is None:
            return self.number > 0
        if self.work:
            self.work.wait()
            if self.flag:
                self.number = int(self.flag)
                return True
        self.flag = torch.tensor([self.number])
        self.work = dist.all_reduce(self.flag, dist.ReduceOp.MAX, self.group, async_op=True)
        return False

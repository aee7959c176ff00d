"""A signal to stop ends training after a checkpoint, at the same step on all ranks."""

import signal
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from classic_cnns.callbacks.checkpoint import can_go_on, save_last


class Stopped(SystemExit):
    """A signal ended the run; exits as shells have it."""

    code: int

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopOnSignal(Callback):
    """Is to `receive` the signals; every run has this callback.

    During training the run ends at the end of a step, with a checkpoint. Outside of training, and
    at the second signal, it ends at once. Lightning's own handler of SIGTERM would wait for the
    other ranks inside the handler, where they need not come, so it is replaced once it is set.
    """

    interval = 0.1  # seconds

    def __init__(self, saves: bool) -> None:
        """With `saves` a checkpoint is written before the run ends."""
        self.saves = saves
        self.number = 0  # of the signal that was received
        self.training = self.saved = False
        self.group: Any = None  # of the ranks, if there are several
        self.flag = torch.tensor(0)
        self.steps_left = self.steps = 0  # until the ranks ask again, and since they have asked
        self.asked = time.monotonic()
        self.exchange: Any = None  # of the flags, if one is under way

    def receive(self, number: int, _) -> None:
        if self.number or not self.training:
            raise Stopped(number)
        self.number = number

    def on_train_start(self, trainer, pl_module) -> None:
        self.handle_sigterm()
        self.training = True
        # On the CPU, since to look at a GPU's numbers at each step would hold it up.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def on_test_start(self, trainer, pl_module) -> None:
        self.handle_sigterm()

    def handle_sigterm(self) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
            signal.signal(signal.SIGTERM, self.receive)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if not can_go_on(trainer, batch_idx):
            return
        if self.number if self.group is None else self.ranks_agree():
            if self.saves:
                save_last(trainer)
            self.saved = True

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.saved:  # by now the step before has been logged
            raise Stopped(self.number)

    def on_train_end(self, trainer, pl_module) -> None:
        self.training = False
        if self.number:  # since the last step
            raise Stopped(self.number)

    def ranks_agree(self) -> bool:
        """Whether any rank has received a signal; the same on all ranks at the same step.

        To ask costs a seventh of a LeNet-5 step, so they ask every `interval` seconds, and agree
        with each answer how many steps that is. The answer travels while the next step computes.
        """
        if self.exchange:
            self.exchange.wait()
            self.exchange = None
            number, steps = self.flag.tolist()
            if number:
                self.number = number
                return True
            self.steps_left = -steps
        self.steps_left -= 1
        self.steps += 1
        if self.steps_left <= 0:
            now = time.monotonic()
            fit = int(self.interval * self.steps / (now - self.asked))  # steps at the recent speed
            self.asked, self.steps = now, 0
            self.flag = torch.tensor([self.number, -max(1, fit)])  # the fewest of all ranks count
            self.exchange = dist.all_reduce(self.flag, dist.ReduceOp.MAX, self.group, async_op=True)
        return False

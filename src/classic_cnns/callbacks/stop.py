"""Signals stop training after a checkpoint, at the same step on all ranks."""

import signal
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from classic_cnns.callbacks.checkpoint import is_resumable, save_last, writes_last


class Stopped(SystemExit):
    """A signal ended the run; the exit code is 128 plus its number, as in shells."""

    code: int

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class StopOnSignal(Callback):
    """Ends the run after a signal; `receive` is the signal handler. Every run has this callback.

    During training the run ends after the current step, with a checkpoint if the run writes any;
    if it cannot be resumed there, after the epoch, which has a checkpoint of its own. Outside of
    training, and at the second signal, it ends at once. Lightning's own SIGTERM handler
    would wait inside the handler for the other ranks, which may never get there, so it is replaced
    after Lightning has set it.
    """

    interval = 0.1  # seconds

    def __init__(self) -> None:
        self.number = 0  # of the received signal
        self.training = self.stops = False  # stops: before the next step
        self.group: Any = None  # process group for the exchange, with several ranks
        self.flag = torch.tensor(0)
        self.steps_left = self.steps = 0  # until the next exchange, and since the last one
        self.exchanged_at = time.monotonic()
        self.exchange: Any = None  # a running exchange of flags

    def receive(self, number: int, _) -> None:
        if self.number or not self.training:
            raise Stopped(number)
        self.number = number

    def on_train_start(self, trainer, pl_module) -> None:
        self.handle_sigterm()
        self.training = True
        # On the CPU, since reading a value from a GPU at each step would stall it.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def on_test_start(self, trainer, pl_module) -> None:
        self.handle_sigterm()

    def handle_sigterm(self) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
            signal.signal(signal.SIGTERM, self.receive)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        resumable = is_resumable(trainer, batch_idx)
        if not resumable and not trainer.is_last_batch:
            return
        if self.number if self.group is None else self.stop_agreed():
            if resumable and writes_last(trainer):
                save_last(trainer)
            self.stops = True

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.stops:  # the previous step has been logged by now
            raise Stopped(self.number)

    def on_train_end(self, trainer, pl_module) -> None:
        self.training = False
        if self.number:  # received since the last step
            raise Stopped(self.number)

    def stop_agreed(self) -> bool:
        """Whether any rank has received a signal; the same on all ranks at the same step.

        Asking the other ranks costs a seventh of a LeNet-5 step, so they do so about every
        `interval` seconds, and agree each time on the number of steps until the next exchange. The
        exchange runs while the next step is computed.
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
            # As many steps as fit into an interval; the smallest number of all ranks counts.
            fit = int(self.interval * self.steps / (now - self.exchanged_at))
            self.exchanged_at, self.steps = now, 0
            self.flag = torch.tensor([self.number, -max(1, fit)])
            self.exchange = dist.all_reduce(self.flag, dist.ReduceOp.MAX, self.group, async_op=True)
        return False

"""How long OpenMP's threads spin while they wait for work; torch is not imported here.

Waking a thread takes longer than many of a small net's parallel regions, so long spinning makes a
run that is alone on its cores a sixth faster. If another program occupies a core, however, all
threads spin for the one that has none, and two runs at once take many times as long. So threads
spin long by default, and only for a microsecond while this process lacks cores. Results do not
change.

oneDNN's gradients of convolutions in bfloat16 spin at barriers of their own, which no setting
limits. Only fewer threads help, but they change the last digits of results, so the user decides:
each run logs the advice at most once.

The limit is switched by a rule in the documentation of libgomp: a program that has more OpenMP
threads than CPUs spins 100 times only. The additional threads sleep.
"""

import logging
import os
import sys
import time
from collections import deque
from contextlib import suppress
from functools import cache
from math import ceil
from threading import Event, Thread, main_thread

log = logging.getLogger(__name__)

SPIN_COUNT = 30_000  # as fast alone as GNU's default of 300,000, and shorter if cores are lacking
FIXED_SPIN_COUNT = 1_700  # a compromise for kernels that do not report times of waiting
INTERVAL = 0.25  # seconds
STARTS, ENDS = 4, 8  # intervals whose mean decides; short epochs end with a peak in one
ADVICE = (
    "not enough free cores for %s threads: bfloat16 can now take many times as long; "
    "OMP_NUM_THREADS=%s avoids this, and changes the last digits of results"
)


def limit_spinning() -> None:
    """Adapt the spinning of this process to the load.

    Called after torch was imported, it leaves long spinning at GNU's default. Environment variables
    set by the user have precedence.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return
    count = str(SPIN_COUNT if sum(times()) else FIXED_SPIN_COUNT)
    if os.environ.setdefault("GOMP_SPINCOUNT", count) == str(SPIN_COUNT):
        start_watch(os.getpid())


def times() -> tuple[float, float]:
    """Seconds that all threads of this process have run, and waited for a core; 0 if unknown."""
    ran = waited = 0
    with suppress(FileNotFoundError):
        for task in os.listdir("/proc/self/task"):
            with suppress(OSError), open(f"/proc/self/task/{task}/schedstat") as file:
                numbers = file.read().split()
                ran, waited = ran + int(numbers[0]), waited + int(numbers[1])
    return ran / 1e9, waited / 1e9


class Watch(Thread):
    """Compares the time that threads wait for a core with the time that passes."""

    bfloat16 = False  # whether a run computes in it here and has not had the advice yet

    def run(self) -> None:
        end: Event | None = None  # of the sleepers, while there are any
        start, before = time.monotonic(), times()[1]
        shares: deque[float] = deque(maxlen=ENDS)
        while True:
            time.sleep(INTERVAL)
            now, waited = time.monotonic(), times()[1]
            shares.append((waited - before) / (now - start))
            start, before, threads = now, waited, thread_count()
            # A busy program gives 0.5 or more, and of many threads some always wait a little.
            limit = 0.3 + 0.01 * threads
            if end is None and sum(list(shares)[-STARTS:]) > STARTS * limit and threads > 1:
                with suppress(RuntimeError):  # this process is ending
                    end = start_sleepers(threads)
                shares.clear()
                if Watch.bfloat16:
                    Watch.bfloat16 = False
                    log.warning(ADVICE, threads, threads - 1)
            elif end and len(shares) == ENDS and sum(shares) < ENDS * limit / 2:
                end.set()
                end = None


@cache  # a forked process has no watch yet
def start_watch(process: int) -> None:
    Watch(daemon=True, name="spinning").start()


def thread_count() -> int:
    """The number of threads that torch uses for one operation; 0 if it is not imported."""
    if "torch" not in sys.modules:
        return 0
    import torch  # waits until another thread has imported it

    return torch.get_num_threads()


def start_sleepers(threads: int) -> Event:
    """Start sleeping OpenMP threads, so that there are more than CPUs, until the event is set.

    Each thread of Python that enters a parallel region gets OpenMP threads of its own, which live
    as long as it does.
    """
    end = Event()

    def sleep() -> None:
        import torch

        torch.zeros(threads * 2**16, device="cpu").add_(1)  # at least 2**15 numbers for each thread
        while main_thread().is_alive() and not end.wait(INTERVAL):
            pass

    lacking = len(os.sched_getaffinity(0)) + 1 - threads
    for _ in range(max(1, ceil(lacking / (threads - 1)))):
        # No daemons: Python would end them within torch's code, which aborts the process.
        Thread(target=sleep).start()
    return end

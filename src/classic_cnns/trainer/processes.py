"""Processes that we start and supervise, and the signals that ask us to stop; without torch."""

import ctypes
import fcntl
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from subprocess import Popen
from typing import Any

GRACE = 10.0  # seconds that processes have to end once another has failed, or we insist
# What a launcher around us, or an earlier run, would tell a process about ranks not its own.
LAUNCHER = re.compile(
    r"((LOCAL|GLOBAL|NODE|GROUP|ROLE)_)?(RANK|WORLD_SIZE)"
    r"|MASTER_(ADDR|PORT)|(PL|TORCHELASTIC|SLURM|PMIX?|OMPI_COMM_WORLD)_.*"
)
LIBC = ctypes.CDLL(None)


@contextmanager
def stop_signals(handler: Callable[[int, Any], Any] | None = None) -> Iterator[list[int]]:
    """The signals to stop that have come, in their order, in place of what they would do.

    With a `handler` that one gets them. Those that we were told to ignore are left alone, and all
    in a thread that is not the main one, as some notebooks have it: Python allows no more.
    """
    seen: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if in_main else ()
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {n: signal.signal(n, handler or (lambda n, _: seen.append(n))) for n in heard}
    try:
        yield seen
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def start(command: Sequence[str], environment: dict[str, str], **options: Any) -> Popen:
    """Start a process that leads a session of its own: we hand a terminal's Ctrl-C on to it."""
    return Popen(command, env=environment, start_new_session=True, **options)


def supervise(
    leaders: Sequence[Popen], stop_requests: list[int], patience: float = inf
) -> Iterator[dict[int, int]]:
    """Yields, until all have ended, the exit codes by position of those that were first to fail.

    Each new entry of `stop_requests` is handed on as SIGTERM. Whoever still runs `patience` seconds
    after the first one, or GRACE after the second one or the first failure, is killed with all
    that it started: each is the leader of a session of its own.
    """
    first: dict[int, int] = {}
    handed_on, deadline = 0, inf
    while running := [leader for leader in leaders if leader.poll() is None]:
        first = first or failed(leaders)
        now = time.monotonic()
        for leader in running:
            if now > deadline:
                kill(leader)
            elif len(stop_requests) > handed_on:
                leader.terminate()
        handed_on = len(stop_requests)
        if first or handed_on > 1:
            deadline = min(deadline, now + GRACE)
        elif handed_on:
            deadline = min(deadline, now + patience)
        yield first
    yield first or failed(leaders)


def failed(leaders: Sequence[Popen]) -> dict[int, int]:
    return {i: leader.returncode for i, leader in enumerate(leaders) if leader.returncode}


def kill(leader: Popen) -> None:
    """Kill all that runs in the leader's session."""
    with suppress(ProcessLookupError, PermissionError):  # none is left; macOS says the latter
        os.killpg(leader.pid, signal.SIGKILL)


def exit_reason(code: int) -> str:
    """How a process ended of which only the exit code is known."""
    if code >= 0:
        return f"ended with exit code {code}"
    memory = ", as happens when memory runs out" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{memory}"


def clean_environment() -> dict[str, str]:
    """Our environment without what a launcher set in it for us."""
    return {name: value for name, value in os.environ.items() if not LAUNCHER.fullmatch(name)}


def end_with_parent() -> None:
    """Linux sends SIGTERM when the process that started this one is gone, however it went."""
    if sys.platform == "linux":
        LIBC.prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG


def take_lock(path: Path) -> int | None:
    """A descriptor that holds the lock until all who have it are gone; None if another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except BlockingIOError:
        os.close(descriptor)
        return None

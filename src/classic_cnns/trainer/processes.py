"""Processes that we start and watch over, and the signals that ask us to stop; without torch."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf
from subprocess import Popen
from typing import Any

GRACE = 10.0  # seconds that processes have to end once another has failed, or we insist


@contextmanager
def stop_signals(handler: Callable[[int, Any], Any] | None = None) -> Iterator[list[int]]:
    """The signals to stop that have come, in their order, in place of what they would do.

    With a `handler` that one gets them. Those that we were told to ignore are left alone.
    """
    seen: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {n: signal.signal(n, handler or (lambda n, _: seen.append(n))) for n in heard}
    try:
        yield seen
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def watch(
    leaders: Sequence[Popen], asked: list[int], patience: float = inf
) -> Iterator[dict[int, int]]:
    """Yields, until all have ended, the exit codes by position of those that were first to fail.

    Each new entry of `asked` is handed on as SIGTERM. Whoever is still there `patience` seconds
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
            elif len(asked) > handed_on:
                leader.terminate()
        handed_on = len(asked)
        if first or handed_on > 1:
            deadline = min(deadline, now + GRACE)
        elif handed_on:
            deadline = min(deadline, now + patience)
        yield first
    yield first or failed(leaders)


def failed(leaders: Sequence[Popen]) -> dict[int, int]:
    return {i: leader.returncode for i, leader in enumerate(leaders) if leader.returncode}


def kill(leader: Popen) -> None:
    with suppress(ProcessLookupError, PermissionError):  # none is left; macOS says the latter
        os.killpg(leader.pid, signal.SIGKILL)


def how(code: int) -> str:
    """How a process ended, of which nothing is known but its exit code."""
    if code >= 0:
        return f"ended with exit code {code}"
    memory = ", as happens when memory runs out" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{memory}"

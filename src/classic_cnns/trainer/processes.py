"""Starting, supervising and stopping processes; torch is not imported here."""

import ctypes
import errno
import fcntl
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from math import inf
from pathlib import Path
from subprocess import Popen
from typing import Any

log = logging.getLogger(__name__)

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP}  # Lustre and NFS, if mounted without them
REQUEUE = signal.SIGUSR1  # sent before a job's time is over, by sbatch --signal=SIGUSR1@90
GRACE = 10.0  # seconds to end after another process has failed, or after a second signal
# Variables by which a launcher around us would misinform our processes about ranks.
LAUNCHER = re.compile(
    r"((LOCAL|GLOBAL|NODE|GROUP|ROLE)_)?(RANK|WORLD_SIZE)"
    r"|MASTER_(ADDR|PORT)|(PL|TORCHELASTIC|PMIX?|OMPI_COMM_WORLD)_.*"
    r"|SLURM_(?!(CONF|JWT|CLUSTERS)$).*"  # these are for commands of SLURM
)
LIBC = ctypes.CDLL(None)


@contextmanager
def stop_signals(handler: Callable[[int, Any], Any] | None = None) -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in a list, or pass them to `handler`.

    In a job of SLURM also SIGUSR1. Ignored signals stay ignored. In a thread other than the main
    one nothing is changed, since Python does not allow it.
    """
    seen: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    numbers += [REQUEUE] if "SLURM_JOB_ID" in os.environ else []
    handled = [n for n in numbers if in_main and signal.getsignal(n) != signal.SIG_IGN]
    before = {n: signal.signal(n, handler or (lambda n, _: seen.append(n))) for n in handled}
    try:
        yield seen
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def requeue() -> None:
    """Ask SLURM to start this job again; it keeps its ID.

    Lightning would do so in the signal's handler, with a checkpoint that cannot be resumed exactly.
    """
    command = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("SLURM does not start this job again: %s", error)


def start(command: Sequence[str], environment: dict[str, str], **options: Any) -> Popen:
    """Start a process in a session of its own, so that Ctrl-C reaches it only through us."""
    return Popen(command, env=environment, start_new_session=True, **options)


def supervise(
    leaders: Sequence[Popen], stop_requests: list[int], patience: float = inf
) -> Iterator[dict[int, int]]:
    """Yields, until all processes have ended, the exit codes of the first ones that failed.

    Each new entry of `stop_requests` is forwarded as SIGTERM. Processes are killed with all of
    their children if they still run `patience` seconds after the first request, or GRACE seconds
    after the second request or the first failure. Each must be the leader of its session. Exit
    codes are keyed by position in `leaders`.
    """
    first: dict[int, int] = {}
    forwarded, deadline = 0, inf
    while running := [leader for leader in leaders if leader.poll() is None]:
        first = first or failed(leaders)
        now = time.monotonic()
        for leader in running:
            if now > deadline:
                kill(leader)
            elif len(stop_requests) > forwarded:
                leader.terminate()
        forwarded = len(stop_requests)
        if first or forwarded > 1:
            deadline = min(deadline, now + GRACE)
        elif forwarded:
            deadline = min(deadline, now + patience)
        yield first
    yield first or failed(leaders)


def failed(leaders: Sequence[Popen]) -> dict[int, int]:
    return {i: leader.returncode for i, leader in enumerate(leaders) if leader.returncode}


def kill(leader: Popen) -> None:
    """Kill all processes in the leader's session."""
    with suppress(ProcessLookupError, PermissionError):  # already gone; macOS raises the latter
        os.killpg(leader.pid, signal.SIGKILL)


def exit_reason(code: int) -> str:
    """A description of how a process ended, from its exit code."""
    if code >= 0:
        return f"ended with exit code {code}"
    memory = ", as happens when memory runs out" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{memory}"


def clean_environment() -> dict[str, str]:
    """Our environment without the variables that a launcher has set for us."""
    return {name: value for name, value in os.environ.items() if not LAUNCHER.fullmatch(name)}


def end_with_parent(*_: object) -> None:
    """On Linux, receive SIGTERM when the parent process ends, however it ends."""
    if sys.platform == "linux":
        LIBC.prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock until all of its owners end; None if it is taken.

    Some file systems of clusters have no locks: that is logged, and nothing is locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        report_no_locks()
    return descriptor


def wait_for_lock(path: Path) -> Any:
    """A held lock for a `with` block; logs a message when waiting for another process.

    On a file system without locks, the existence of a file is the lock.
    """
    from filelock import FileLock, SoftFileLock, Timeout  # here, since every command imports this

    for lock in (FileLock(path), SoftFileLock(path.with_suffix(".soft_lock"))):
        try:
            return lock.acquire(0.1)
        except Timeout:
            log.info("%s: another process prepares it; waiting for it", path.with_suffix(""))
            return lock.acquire()
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise


@cache  # once in a process
def report_no_locks() -> None:
    log.warning("the file system has no locks: do not let two processes use the same directory")

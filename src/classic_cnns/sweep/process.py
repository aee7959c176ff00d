"""One job's command in a session of its own: it ends with us, or at its time limit."""

import ctypes
import fcntl
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, Popen

from classic_cnns.files import read_json, write_json
from classic_cnns.processes import how, kill, stop_signals, watch
from classic_cnns.sweep.job import Job

PATIENCE = 60.0  # seconds between asking a job to end and ending it
# What a launcher around us, or an earlier run, would tell a job about ranks that are not its own.
FOREIGN = re.compile(
    r"((LOCAL|GLOBAL|NODE|GROUP|ROLE)_)?(RANK|WORLD_SIZE)"
    r"|MASTER_(ADDR|PORT)|(PL|TORCHELASTIC|SLURM|PMI|OMPI)_.*"
)
C = ctypes.CDLL(None)


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not FOREIGN.fullmatch(name)}


def end_with_parent() -> None:
    """Linux sends SIGTERM when the process that started this one is gone, however it went."""
    if sys.platform == "linux":
        C.prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG


def take_lock(path: Path) -> int | None:
    """A descriptor that holds the lock until all who have it are gone; None if another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except BlockingIOError:
        os.close(descriptor)
        return None


def carry_out(job: Job, environment: dict[str, str]) -> Iterator[None]:
    """The whole of a job, up to its `result.json`; yields while it runs.

    At the first entry of `asked` it is to write a checkpoint and end, at the second to end now.
    It holds the lock of its directory: one that a killed sweep has left, and that has yet to
    write its checkpoint, is waited for.
    """
    job.directory.mkdir(parents=True, exist_ok=True)
    while (lock := take_lock(job.directory / ".lock")) is None:
        if job.asked:
            return
        yield
    path, too_long = job.directory / "result.json", False
    earlier = read_json(path)
    if earlier and earlier["status"] != "finished":  # not meanwhile, by a start before this
        path.unlink()
    with open(job.directory / "output.log", "ab") as log:
        process = Popen(
            job.command,
            stdin=DEVNULL,
            stdout=log,
            stderr=log,
            env=clean_environment() | environment,
            start_new_session=True,
            preexec_fn=end_with_parent,
            pass_fds=[lock],
        )
    os.close(lock)  # the job has its own
    started = time.monotonic()
    for _ in watch([process], job.asked, PATIENCE):
        if job.time_limit and time.monotonic() - started > job.time_limit and not job.asked:
            too_long = True
            job.asked.append(signal.SIGTERM)
        yield
    kill(process)  # ranks that have outlived the first
    result = read_json(path) or {}
    if too_long and result.get("status") != "finished":
        error = f"took longer than sweep.time_limit={job.time_limit:g} seconds"
        result |= {"status": "timeout", "error": error}
    elif job.asked:
        result = result or {"status": "interrupted", "error": "interrupted"}
    write_json(path, result or from_outside(process.returncode, job.directory / "output.log"))


def from_outside(code: int, log: Path) -> dict[str, str]:
    """The result of a job that has written none, as it looks from outside."""
    if code < 0:
        return {"status": "killed", "error": how(code)}
    line = log.read_text(errors="replace").strip().rpartition("\n")[2]
    return {"status": "failed", "error": line or how(code)}


def carry_out_away(job: Job, folder: str, environment: dict[str, str]) -> None:
    """The same on the machine that an engine has chosen, in the working `folder`.

    An engine cancels it by one of the signals to stop.
    """
    os.chdir(folder)
    with stop_signals() as job.asked:
        for _ in carry_out(job, environment):
            time.sleep(0.1)

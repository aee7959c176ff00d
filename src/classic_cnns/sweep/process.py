"""One job's command in a session of its own: it ends with us, or at its time limit."""

import ctypes
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from classic_cnns.files import read_json, write_json

GRACE = 60.0  # seconds between asking a job to end and ending it
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


class Process:
    """Started by `start`; `poll` until it is True: then `result.json` says what came out.

    A job holds the lock of its directory. Where a killed sweep has left one, which has yet to
    write its checkpoint, `start` returns None.
    """

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        directory: Path,
        environment: dict[str, str],
        time_limit: float | None,
    ) -> "Process | None":
        directory.mkdir(parents=True, exist_ok=True)
        lock = take_lock(directory / ".lock")
        if lock is None:
            return None
        try:
            return cls(command, directory, environment, time_limit, lock)
        finally:
            os.close(lock)  # the job has its own

    def __init__(self, command, directory, environment, time_limit, lock: int) -> None:
        self.directory, self.time_limit = directory, time_limit
        self.started, self.asked_to_end = time.monotonic(), 0.0
        self.too_long = self.is_over = False
        earlier = read_json(directory / "result.json")
        if earlier and earlier["status"] != "finished":  # not meanwhile, by a start before this
            (directory / "result.json").unlink()
        with open(directory / "output.log", "ab") as log:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment() | environment,
                start_new_session=True,
                preexec_fn=end_with_parent,
                pass_fds=[lock],
            )

    def poll(self) -> bool:
        """Whether it has ended."""
        now = time.monotonic()
        code = self.popen.poll()
        if code is None:
            if self.time_limit and now - self.started > self.time_limit and not self.asked_to_end:
                self.too_long = True
                self.stop()
            if self.asked_to_end and now - self.asked_to_end > GRACE:
                self.kill()
            return False
        self.kill()  # ranks that have outlived the first
        write_json(self.directory / "result.json", self.outcome(code))
        self.is_over = True
        return True

    def stop(self, at_once: bool = False) -> None:
        """Ask it to write a checkpoint and end; or end it."""
        if not self.asked_to_end:
            self.asked_to_end = time.monotonic()
            self.popen.send_signal(signal.SIGTERM)
        elif at_once:
            self.kill()

    def kill(self) -> None:
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # none is left; macOS says it the other way
            pass

    def outcome(self, code: int) -> dict:
        """What the job has written of itself or, where it could not, what is seen from outside."""
        result = read_json(self.directory / "result.json")
        if result and result["status"] == "finished":
            return result
        if self.too_long:
            return (result or {}) | {
                "status": "timeout",
                "error": f"took longer than sweep.time_limit={self.time_limit:g} seconds",
            }
        if result:
            return result
        if self.asked_to_end:
            return {"status": "interrupted", "error": "interrupted"}
        if code < 0:
            name = signal.Signals(-code).name
            why = ", which the system sends when memory runs out" if name == "SIGKILL" else ""
            return {"status": "killed", "error": f"killed by {name}{why}"}
        return {"status": "failed", "error": last_line(self.directory) or f"exit code {code}"}


def last_line(directory: Path) -> str:
    lines = (directory / "output.log").read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def carry_out(
    command: Sequence[str],
    folder: str | Path,
    directory: Path,
    environment: dict[str, str],
    time_limit: float | None,
) -> None:
    """The whole of a job, on the machine that an engine has chosen, in the working `folder`.

    How an engine cancels a job, by Ctrl-C's exception or by SIGTERM, is handed on to it.
    """

    def end(*_) -> None:
        raise SystemExit

    os.chdir(folder)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)
    process = None
    try:
        while process is None or not process.poll():
            process = process or Process.start(command, directory, environment, time_limit)
            time.sleep(0.1)
    except (KeyboardInterrupt, SystemExit):
        if process:
            process.stop()
            while not process.poll():
                time.sleep(0.1)

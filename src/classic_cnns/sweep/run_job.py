"""One job's command in a session of its own: it ends with us, or at its time limit."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL

from classic_cnns.files import read_json, write_json
from classic_cnns.sweep.job import Job
from classic_cnns.trainer.processes import (
    clean_environment,
    end_with_parent,
    exit_reason,
    kill,
    start,
    stop_signals,
    supervise,
    take_lock,
)

PATIENCE = 60.0  # seconds between asking a job to end and killing it


def run_job(job: Job, environment: dict[str, str]) -> Iterator[None]:
    """The whole of a job, up to its `result.json`; yields while it runs.

    At the first entry of `stop_requests` it is to write a checkpoint and end, at the second to end
    now. It holds the lock of its directory: a run that a killed sweep has left, and that has yet to
    write its checkpoint, is waited for.
    """
    job.directory.mkdir(parents=True, exist_ok=True)
    while (lock := take_lock(job.directory / ".lock")) is None:
        if job.stop_requests:
            return
        yield
    path, timed_out = job.directory / "result.json", False
    earlier = read_json(path)
    if earlier and earlier["status"] != "finished":  # not meanwhile, by a start before this
        path.unlink()
    log = job.directory / "output.log"
    with open(log, "ab") as output:
        process = start(
            job.command,
            clean_environment() | environment,
            stdin=DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=end_with_parent,
            pass_fds=[lock],
        )
    os.close(lock)  # the job has its own
    started = time.monotonic()
    for _ in supervise([process], job.stop_requests, PATIENCE):
        late = job.time_limit and time.monotonic() - started > job.time_limit
        if late and not job.stop_requests:
            timed_out = True
            job.stop_requests.append(signal.SIGTERM)
        yield
    kill(process)  # ranks that have outlived the first
    result = read_json(path) or {}
    if timed_out and result.get("status") != "finished":
        error = f"took longer than sweep.time_limit={job.time_limit:g} seconds"
        result |= {"status": "timeout", "error": error}
    elif job.stop_requests:
        result = result or {"status": "interrupted", "error": "interrupted"}
    write_json(path, result or result_from_outside(process.returncode, log))


def result_from_outside(code: int, log: Path) -> dict[str, str]:
    """The result of a job that has written none, from its exit code and its last line."""
    if code < 0:
        return {"status": "killed", "error": exit_reason(code)}
    line = log.read_text(errors="replace").strip().rpartition("\n")[2]
    return {"status": "failed", "error": line or exit_reason(code)}


def run_job_remotely(job: Job, folder: str, environment: dict[str, str]) -> None:
    """The same on the machine that a cluster has chosen, in the working `folder`.

    A cluster cancels it by one of the signals to stop.
    """
    os.chdir(folder)
    with stop_signals() as job.stop_requests:
        for _ in run_job(job, environment):
            time.sleep(0.1)

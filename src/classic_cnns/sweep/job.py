"""A job of a sweep: its command, its progress, and running it in a session of its own."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

from classic_cnns import quoted
from classic_cnns.files import write_json
from classic_cnns.report.results import format_value, read_metrics, read_result
from classic_cnns.trainer import processes

PATIENCE = 60.0  # seconds between asking a job to end and killing it


@dataclass
class Job:
    number: int
    overrides: list[str]
    parameters: dict[str, str]  # the overrides that vary in the sweep
    directory: Path
    program: list[str]  # the command before the overrides
    ranks: int = 1
    on_gpu: bool = False
    packages: list[str] = field(default_factory=list)  # of the user's own classes
    time_limit: float | None = None  # seconds
    state: str = "waiting"
    result: dict[str, Any] = field(default_factory=dict)
    handle: Any = None  # of its executor, while it runs
    stop_requests: list[int] = field(default_factory=list)  # signals
    offset: int = 0  # bytes of metrics.jsonl that were read
    last: dict[str, Any] = field(default_factory=dict)  # the last line read
    read_at: float = 0.0  # when that line was read

    @property
    def command(self) -> list[str]:
        """The command line, which resumes the run if it was started before."""
        if (self.directory / "config.yaml").exists():
            trust = [word for package in self.packages for word in ("--trust", package)]
            return [*self.program, *trust, f"resume={quoted(str(self.directory))}"]
        varied = ",".join(quoted(f"{key}={value}") for key, value in self.parameters.items())
        own = [f"run_dir={quoted(str(self.directory))}", f"varied=[{varied}]"]
        return [*self.program, *self.overrides, *own]

    def read_progress(self) -> list[dict[str, Any]]:
        """The lines added to its metrics.jsonl since the last call."""
        lines, self.offset = read_metrics(self.directory, self.offset)
        for line in lines:  # not every epoch has a validation
            values = self.last.get("metrics", {}) | line["metrics"]
            self.last, self.read_at = line | {"metrics": values}, time.monotonic()
        return lines

    def progress(self, metric: str) -> str:
        """Epoch, metric and time left, from the last line read."""
        if not self.last:
            return ""
        epoch, epochs, values = (self.last[name] for name in ("epoch", "epochs", "metrics"))
        text = f"epoch {epoch}/{epochs}" if epochs > 0 else f"epoch {epoch}"
        if metric in values:
            text += f"  {metric} {format_value(metric, values[metric])}"
        if self.state != "running" or epochs < 0:
            return text
        left = self.last["seconds"] / epoch * (epochs - epoch) - (time.monotonic() - self.read_at)
        return f"{text}  {max(0, round(left))} s left"


def run_job(job: Job, environment: dict[str, str]) -> Iterator[None]:
    """Run a job until its `result.json` is written; yields while it runs.

    The first entry of `stop_requests` asks the job to write a checkpoint and end, the second to end
    now. The job's directory stays locked while its process runs: if a killed sweep has left a
    process that is still writing its checkpoint, this waits for it.
    """
    job.directory.mkdir(parents=True, exist_ok=True)
    while (lock := processes.try_lock(job.directory / ".lock")) is None:
        if job.stop_requests:
            return
        yield
    path, timed_out = job.directory / "result.json", False
    earlier = read_result(job.directory)
    # Another process may have finished the job while this one waited.
    if earlier and earlier["status"] != "finished":
        path.unlink()
    log = job.directory / "output.log"
    with open(log, "ab") as output:
        process = processes.start(
            job.command,
            processes.clean_environment() | environment,
            stdin=DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=processes.end_with_parent,
            pass_fds=[lock],
        )
    os.close(lock)  # the job has inherited it
    started = time.monotonic()
    for _ in processes.supervise([process], job.stop_requests, PATIENCE):
        late = job.time_limit and time.monotonic() - started > job.time_limit
        if late and not job.stop_requests:
            timed_out = True
            job.stop_requests.append(signal.SIGTERM)
        yield
    processes.kill(process)  # and its remaining workers
    result = read_result(job.directory)
    if timed_out and result.get("status") != "finished":
        error = f"took longer than sweep.time_limit={job.time_limit:g} seconds"
        result |= {"status": "timeout", "error": error}
    elif job.stop_requests:
        result = result or {"status": "interrupted", "error": "interrupted"}
    write_json(path, result or result_from_exit(process.returncode, log))


def result_from_exit(code: int, log: Path) -> dict[str, str]:
    """The result of a job that wrote none, from its exit code and the last line of its log."""
    if code < 0:
        return {"status": "killed", "error": processes.exit_reason(code)}
    line = log.read_text(errors="replace").strip().rpartition("\n")[2] if code else ""
    return {"status": "failed", "error": line or processes.exit_reason(code)}


def run_job_remotely(job: Job, folder: str, environment: dict[str, str]) -> None:
    """Run a job on a machine of a cluster, in the working directory `folder`.

    The cluster cancels it by one of the stop signals.
    """
    os.chdir(folder)
    with processes.stop_signals() as job.stop_requests:
        for _ in run_job(job, environment):
            time.sleep(0.1)

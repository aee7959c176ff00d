"""Progress of a sweep on the terminal: a live line for each running job, and one for each event."""

import shutil
import sys
import time
from collections.abc import Sequence

from classic_cnns import one_line
from classic_cnns.report.results import format_parameter, format_value
from classic_cnns.sweep.job import Job


class ProgressDisplay:
    """On a terminal, running jobs are shown below the log; elsewhere only the log is printed."""

    def __init__(self, metric: str) -> None:
        self.metric, self.live = metric, sys.stdout.isatty()
        self.drawn, self.drawn_at = 0, 0.0  # number of live lines, and when they were drawn

    def say(self, text: str) -> None:
        self.erase()
        print(text, flush=True)

    def started(self, job: Job) -> None:
        if not self.live:
            self.say(f"{title(job)}: running, {job.directory / 'output.log'}")

    def ended(self, job: Job) -> None:
        self.say(f"{title(job)}: {self.outcome(job)}")

    def draw(self, running: Sequence[Job], waiting: int) -> None:
        """Redraw the live lines, at most twice a second."""
        if not self.live or time.monotonic() - self.drawn_at < 0.5:
            return
        self.drawn_at = time.monotonic()
        size = shutil.get_terminal_size()
        told = [f"{job.state}  {job.progress(self.metric)}" for job in running]
        told = [text.removeprefix("running  ") or "running" for text in told]  # short lines
        lines = [f"{title(job)}: {text}" for job, text in zip(running, told, strict=True)]
        lines = [line[: size.columns - 1] for line in lines][: size.lines - 2]
        lines += [f"{waiting} waiting"] if waiting else []
        self.erase()
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
        self.drawn = len(lines)

    def erase(self) -> None:
        if self.drawn:
            print(f"\033[{self.drawn}A\033[J", end="")
        self.drawn = 0

    def outcome(self, job: Job) -> str:
        if job.state == "pruned":
            return f"pruned after {job.progress(self.metric)}"
        if job.state != "finished":
            return f"{job.state}  {one_line(job.result.get('error', ''))[:300]}"
        values = job.result["metrics"]
        value = format_value(self.metric, values[self.metric]) if self.metric in values else "none"
        return f"finished  {self.metric} {value}, {job.result['seconds']:.1f} s"


def title(job: Job) -> str:
    parameters = (f"{key}={format_parameter(value)}" for key, value in job.parameters.items())
    return " ".join([f"job {job.number}", *parameters])

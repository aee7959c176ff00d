"""What a person sees of a sweep: a line for each running job that moves, and one for each event."""

import shutil
import sys
import time
from collections.abc import Sequence

from classic_cnns.sweep.job import Job


class Lines:
    """On a terminal the running jobs stand below what has been said; elsewhere nothing moves."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.drawn, self.when = 0, 0.0

    def say(self, text: str) -> None:
        self.erase()
        print(text, flush=True)

    def started(self, job: Job) -> None:
        if not self.live:
            self.say(f"{named(job)}: running, {job.directory / 'output.log'}")

    def ended(self, job: Job) -> None:
        self.say(f"{named(job)}: {outcome(job)}")

    def draw(self, running: Sequence[Job], waiting: int) -> None:
        """Twice a second at most."""
        if not self.live or time.monotonic() - self.when < 0.5:
            return
        self.when = time.monotonic()
        size = shutil.get_terminal_size()
        lines = [f"{named(job)}: {job.state}  {job.progress()}" for job in running]
        lines = [line[: size.columns - 1] for line in lines][: size.lines - 2]
        lines += [f"{waiting} waiting"] if waiting else []
        self.erase()
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
        self.drawn = len(lines)

    def erase(self) -> None:
        if self.drawn:
            print(f"\033[{self.drawn}A\033[J", end="")
        self.drawn = 0


def named(job: Job) -> str:
    return " ".join([f"job {job.number}", *(f"{k}={v}" for k, v in job.parameters.items())])


def outcome(job: Job) -> str:
    if job.state == "finished":
        error = job.result["metrics"]["val"]["error"]
        return f"finished  {error:.2%} validation error, {job.result['seconds']:.1f} s"
    return f"{job.state}  {job.result['error'].strip().splitlines()[-1]}"

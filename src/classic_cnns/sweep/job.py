"""A job of a sweep: the command that it is, and how far it has come."""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EPOCH = re.compile(r"epoch +(\d+)/(\d+) .*?([\d.]+%) validation")


@dataclass
class Job:
    number: int
    overrides: list[str]
    parameters: dict[str, str]  # those that the sweep varies
    directory: Path
    program: list[str]  # what the overrides follow
    ranks: int
    on_gpu: bool
    time_limit: float | None = None  # seconds
    state: str = "waiting"
    result: dict[str, Any] = field(default_factory=dict)
    task: Any = None  # while it runs, what its engine knows it by
    asked: list[int] = field(default_factory=list)  # the signals by which it was asked to end
    seen: list[tuple[int, float]] = field(default_factory=list)  # epochs, and when they were over

    @property
    def command(self) -> list[str]:
        """What carries it out; goes on with what an earlier start has left."""
        if (self.directory / "config.yaml").exists():
            return [*self.program, f"resume={quoted(str(self.directory))}"]
        varied = ",".join(f"{quoted(f'{key}={value}')}" for key, value in self.parameters.items())
        own = [f"run_dir={quoted(str(self.directory))}", f"varied=[{varied}]"]
        return [*self.program, *self.overrides, *own]

    def progress(self) -> str:
        """Epoch, validation error and time left, as the end of its log has them."""
        path = self.directory / "output.log"
        if not path.exists():  # it waits in the queue of a cluster
            return ""
        with open(path, "rb") as log:
            log.seek(max(0, path.stat().st_size - 4096))
            lines = EPOCH.findall(log.read().decode(errors="replace"))
        if not lines:
            return ""
        epoch, epochs, error = int(lines[-1][0]), int(lines[-1][1]), lines[-1][2]
        if not self.seen or self.seen[-1][0] != epoch:
            self.seen.append((epoch, time.monotonic()))
        text = f"epoch {epoch}/{epochs}  {error} validation error"
        (first, start), (last, end) = self.seen[0], self.seen[-1]
        if last == first:
            return text
        left = (end - start) / (last - first) * (epochs - last) - (time.monotonic() - end)
        return f"{text}  {max(0, round(left))} s left"


def quoted(text: str) -> str:
    """As a value on a command line of Hydra's, whatever it holds."""
    return "'" + text.replace("'", "\\'") + "'"

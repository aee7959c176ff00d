"""A job of a sweep: its command and its progress."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from classic_cnns import quoted
from classic_cnns.report.results import format_value, read_metrics


@dataclass
class Job:
    number: int
    overrides: list[str]
    parameters: dict[str, str]  # the overrides that vary in the sweep
    directory: Path
    program: list[str]  # the command before the overrides
    ranks: int = 1
    on_gpu: bool = False
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
            return [*self.program, f"resume={quoted(str(self.directory))}"]
        varied = ",".join(quoted(f"{key}={value}") for key, value in self.parameters.items())
        own = [f"run_dir={quoted(str(self.directory))}", f"varied=[{varied}]"]
        return [*self.program, *self.overrides, *own]

    def read_progress(self) -> list[dict[str, Any]]:
        """The lines added to its metrics.jsonl since the last call."""
        lines, self.offset = read_metrics(self.directory, self.offset)
        if lines:
            self.last, self.read_at = lines[-1], time.monotonic()
        return lines

    def progress(self, metric: str) -> str:
        """Epoch, metric and time left, from the last line read."""
        if not self.last:
            return ""
        epoch, epochs, values = (self.last[name] for name in ("epoch", "epochs", "metrics"))
        text = f"epoch {epoch}/{epochs}"
        if metric in values:
            text += f"  {metric} {format_value(metric, values[metric])}"
        if self.state != "running":
            return text
        left = self.last["seconds"] / epoch * (epochs - epoch) - (time.monotonic() - self.read_at)
        return f"{text}  {max(0, round(left))} s left"

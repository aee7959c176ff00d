"""A job of a sweep: the command that it is, and how far it has come."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from classic_cnns.report.results import read_metrics, shown_value


@dataclass
class Job:
    number: int
    overrides: list[str]
    parameters: dict[str, str]  # those that the sweep varies
    directory: Path
    program: list[str]  # what the overrides follow
    ranks: int = 1
    on_gpu: bool = False
    time_limit: float | None = None  # seconds
    state: str = "waiting"
    result: dict[str, Any] = field(default_factory=dict)
    handle: Any = None  # what its executor knows it by, while it runs
    stop_requests: list[int] = field(default_factory=list)  # signals
    offset: int = 0  # bytes read of its metrics.jsonl
    last: dict[str, Any] = field(default_factory=dict)  # line of it
    read_at: float = 0.0  # when that line was read

    @property
    def command(self) -> list[str]:
        """Goes on with what an earlier start has left."""
        if (self.directory / "config.yaml").exists():
            return [*self.program, f"resume={quoted(str(self.directory))}"]
        varied = ",".join(quoted(f"{key}={value}") for key, value in self.parameters.items())
        own = [f"run_dir={quoted(str(self.directory))}", f"varied=[{varied}]"]
        return [*self.program, *self.overrides, *own]

    def read_progress(self) -> list[dict[str, Any]]:
        """The lines that its metrics.jsonl has gained since the last call."""
        lines, self.offset = read_metrics(self.directory, self.offset)
        if lines:
            self.last, self.read_at = lines[-1], time.monotonic()
        return lines

    def progress(self, metric: str) -> str:
        """Epoch, the metric and the time left, as of the last line read."""
        if not self.last:
            return ""
        epoch, epochs, values = (self.last[name] for name in ("epoch", "epochs", "metrics"))
        text = f"epoch {epoch}/{epochs}"
        if metric in values:
            text += f"  {metric} {shown_value(metric, values[metric])}"
        if self.state != "running":
            return text
        left = self.last["seconds"] / epoch * (epochs - epoch) - (time.monotonic() - self.read_at)
        return f"{text}  {max(0, round(left))} s left"


def quoted(text: str) -> str:
    """As a value on a command line of Hydra's, whatever it holds."""
    return "'" + text.replace("'", "\\'") + "'"

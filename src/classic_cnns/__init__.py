"""LeNet-5 (1998) and AlexNet (2012), exact to the papers.

    from classic_cnns import build, compose, train

    config = compose("model=lenet5", "data=mnist", "trainer.max_epochs=2")
    module, data = build(config)       # a LightningModule and a LightningDataModule
    result = train(config)             # the content of result.json
    net = load(result["directory"])    # in eval mode, with preprocess(), predict() and classes

Imports are lazy: `compose` does not import torch.
"""

import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

if sys.platform == "win32":
    sys.exit("error: Windows is not supported; install WSL with wsl --install, and try again there")

__all__ = ["UserError", "build", "compose", "load", "train"]

PUBLIC = {
    "compose": "classic_cnns.config.compose",
    "build": "classic_cnns.run.build",
    "load": "classic_cnns.run.trained",
    "train": "classic_cnns.run.run",
}


def printable(text: str) -> str:
    """The text, of file names too, in one line: line breaks and undecodable bytes are escaped."""
    other = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
    return re.sub(other, lambda match: ascii(match[0])[1:-1], text)


class UserError(Exception):
    """An error that the user can fix, reported in one line without a traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: IPython calls this method of an exception if it has one."""
        return [f"error: {self}"]


def one_line(error: object) -> str:
    """A text or the message of an error, without line breaks."""
    return " ".join(str(error).split())


def program() -> str:
    """The command that trains, as the user would type it here, for messages that suggest one."""
    called = Path((sys.argv or [""])[0])
    if called.name.startswith("classic-cnns"):
        return called.name
    beside = called.parent / "train.py"  # of this or another script of ours
    ours = beside.is_file() and (called.parent / "classic_cnns").is_dir()
    return f"python {shlex.quote(str(beside if ours else Path('src/train.py')))}"


def quoted(text: str) -> str:
    """A text as a quoted value of Hydra's override syntax."""
    # Before a quote, and at the end, backslashes are doubled.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text) + "'"


def assignment(key: str, value: object) -> str:
    """The override `key=value` for a command line; `value` is quoted if Hydra requires it."""
    text = str(value)
    return f"{key}={text if re.fullmatch('[a-zA-Z0-9_./ -]+', text) else quoted(text)}"


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(import_module(PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

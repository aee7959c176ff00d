"""LeNet-5 (1998) and AlexNet (2012), exact to the papers.

    from classic_cnns import build, compose, train

    config = compose("model=lenet5", "data=mnist", "trainer.max_epochs=2")
    module, data = build(config)       # a LightningModule and a LightningDataModule
    result = train(config)             # what result.json holds
    net = load(result["directory"])    # in eval mode, with preprocess(), predict() and classes

Only what is used is imported: `compose` needs no torch.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["UserError", "build", "compose", "load", "train"]

PUBLIC = {
    "compose": "classic_cnns.config.compose",
    "build": "classic_cnns.run.build",
    "load": "classic_cnns.run.trained",
    "train": "classic_cnns.run.run",
}


class UserError(Exception):
    """A mistake or a circumstance that the user can mend, told in one line; no traceback."""


def program() -> str:
    """How the user calls this program, for messages that propose a command."""
    name = Path(sys.argv[0]).name
    return name if name.startswith("classic-cnns") else "python src/train.py"


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(import_module(PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

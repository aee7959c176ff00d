"""Where messages go: to the terminal, and to the run's own train.log."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only


def show_log(quiet: bool = False) -> None:
    """Our own messages on the terminal, from ranks above 0 and Lightning only warnings.

    With `quiet` only warnings, on stderr.
    """
    root, above_0 = logging.getLogger("classic_cnns"), rank_zero_only.rank != 0  # type: ignore
    root.setLevel(logging.WARNING if above_0 or quiet else logging.INFO)
    if not root.handlers:
        root.addHandler(logging.StreamHandler(sys.stderr if above_0 or quiet else sys.stdout))
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("hydra").setLevel(logging.CRITICAL)  # its errors become lines of ours
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # their reports
    if above_0:  # what is only for developers is in rank 0's train.log already
        warnings.simplefilter("ignore", FutureWarning)


@contextmanager
def train_log(path: Path) -> Iterator[None]:
    """All messages and warnings of the run in `path` too."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a full disk is told once, not by each message
    loggers = [logging.getLogger(name) for name in ("classic_cnns", "lightning", "py.warnings")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        logging.captureWarnings(False)
        handler.close()

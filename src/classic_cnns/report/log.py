"""Logging to the terminal or notebook and to the run's train.log, and progress bars."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm


def show_log(quiet: bool = False) -> None:
    """Log our messages to the terminal; only warnings from other ranks and from Lightning.

    With `quiet`, only warnings, to stderr.
    """
    root, above_0 = logging.getLogger("classic_cnns"), rank_zero_only.rank != 0  # type: ignore
    root.setLevel(logging.WARNING if above_0 or quiet else logging.INFO)
    for handler in [h for h in root.handlers if type(h) is logging.StreamHandler]:
        root.removeHandler(handler)  # a notebook may have captured the output of an earlier call
    if not root.handlers:
        root.addHandler(logging.StreamHandler(sys.stderr if above_0 or quiet else sys.stdout))
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("hydra").setLevel(logging.CRITICAL)  # we report its errors
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # profiler reports
    if above_0:  # rank 0 has logged them already
        warnings.simplefilter("ignore", FutureWarning)


@contextmanager
def early_messages() -> Iterator[MemoryHandler]:
    """Keep our messages until a run has a directory, for its `train_log`."""
    kept = MemoryHandler(1000, flushLevel=logging.CRITICAL + 1)
    logging.getLogger("classic_cnns").addHandler(kept)
    try:
        yield kept
    finally:
        logging.getLogger("classic_cnns").removeHandler(kept)


@contextmanager
def train_log(path: Path, early: MemoryHandler) -> Iterator[None]:
    """Also log all messages and warnings to the file `path`, after the `early` ones."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("classic_cnns").removeHandler(early)
    early.setTarget(handler)
    early.close()
    logging.captureWarnings(True)
    raises, logging.raiseExceptions = logging.raiseExceptions, False  # report a full disk once
    loggers = [logging.getLogger(name) for name in ("classic_cnns", "lightning", "py.warnings")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        logging.captureWarnings(False)
        logging.raiseExceptions = raises
        handler.close()


def progress_bar(unit: str, total: float | None, *, shown: bool = True, **options: Any) -> tqdm:
    """A bar on a terminal or in a notebook, which is removed when it ends; elsewhere it is hidden.

    `options` are further arguments of tqdm.
    """
    redraws = sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")
    return tqdm(total=total, unit=unit, leave=False, disable=not (shown and redraws), **options)

"""From the command line to a checked config: each mistake is one line on stderr, exit code 2.

Nothing here imports torch, which takes seconds: help and mistakes answer at once.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from classic_cnns.errors import JobFailed, UserError
from classic_cnns.overrides import CONF, check, explain, parse, plain

HOW_HYDRA_SWEEPS = ("hydra.sweep.", "hydra.launcher", "hydra/launcher", "hydra.mode")


def command(task: Callable[[DictConfig], object], config_name: str) -> None:
    """Hydra on this project's conf/, with checked values and one line for each mistake.

    Hydra gets a check for its task, and the task itself what has passed. A sweep ends with the
    check, since our launcher carries each job out as a command of its own.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its exceptions on, prints none
    argparse.ArgumentParser.error = lambda _, line: fail(f"{line}; see --help")  # type: ignore
    for word in sys.argv[1:]:
        if word.lstrip("+~").startswith(HOW_HYDRA_SWEEPS):
            fail(f"{word}: how a sweep is run is said by -m and by sweep.*; try sweep.dir=")
    checked: list[DictConfig] = []
    sweeps: list[Path] = []
    compose = functools.cache(lambda name, *words: hydra.compose(name, list(words)))

    @one_line_errors()
    def check_job(config: DictConfig) -> None:
        checked.append(config)
        own = HydraConfig.get()
        words = plain(own.overrides.task)
        choices = [word for word in words if parse(word).key_or_group in own.runtime.choices]
        checked[-1] = check(config, compose(own.job.config_name, *choices), words)
        if own.mode == RunMode.MULTIRUN:
            sweeps.append(Path(str(config.sweep.dir)))
        elif of_sweep := [word for word in words if word.startswith("sweep")]:
            raise UserError(f"{of_sweep[0]}: is for a sweep, which -m starts; add -m")

    try:
        with one_line_errors():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(
                check_job
            )()
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        if checked:
            raise  # a bug of ours
        fail(explain(error, config_name, sys.argv[1:]))
    except JobFailed:
        pass  # a sweeper that bears no failure has given up; the table tells
    if sweeps:
        from classic_cnns.report.results import end  # here, since a run has no table

        sys.exit(end(sweeps[0]))
    with one_line_errors():
        for config in checked:  # none after --cfg
            task(config)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a user's mistake as one line and exit with 2; let our own bugs keep their traceback.

    It goes around what Hydra calls, since Hydra adds lines to an exception but not to an exit.
    """
    try:
        yield
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # as shells have it


def fail(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)

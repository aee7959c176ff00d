"""Parsing of command lines, and error messages: one line on stderr, exit code 2."""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any, NoReturn

from classic_cnns import UserError
from classic_cnns.files import is_disk_error

HELP = """\
Train a classic convolutional network and report its test error.

usage: {program} [group=option ...] [key=value ...]

Groups (select with group=option; callbacks=[default,early_stopping] combines options):

{groups}

Examples:
  {program} model=lenet5 data=mnist
  {program} data.augment=none optim.lr=0.005 seed=1
  {program} trainer=gpu trainer.max_epochs=20 +trainer.max_time=00:01:00:00
  {program} 'callbacks=[default,early_stopping]' 'logger=[tensorboard,csv]'
  {program} -m data.augment=none,shift 'seed=range(3)'
  {program} resume=outputs/lenet5-mnist/latest

Flags:
  -m, --multirun           run a sweep: comma-separated values form a grid
  -cd, --config-dir DIR    also search DIR for configs and your own modules
  --estimate               print the duration of the run after 50 steps, write nothing
  -cn, --config-name NAME  the primary config (default: train)
  --trust PACKAGE          allow code of PACKAGE in the config of an earlier run
  -c, --cfg job            print the config; --resolve resolves interpolations
  -sc, --shell-completion  install=bash prints a completion script for the shell

tensorboard --logdir outputs shows the curves.
"""


class Parser(argparse.ArgumentParser):
    """Raises UserError for a mistake; `text` is the help."""

    def __init__(self, text: str | None, **options: Any) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(description=text, formatter_class=layout, allow_abbrev=False, **options)

    def add_run(self, nargs: str | None = None) -> None:
        self.add_argument("run", nargs=nargs, help="run directory, checkpoint, or .../latest")
        self.add_trust()

    def add_trust(self) -> None:
        self.add_argument(
            "--trust", action="append", default=[], metavar="PACKAGE",
            help="allow code of PACKAGE in the run's config",
        )  # fmt: skip
        self.add_config_dir()

    def add_config_dir(self) -> None:
        self.add_argument(
            "--config-dir", "-cd", action="append", default=[], metavar="DIR",
            help="also search DIR for configs and your own modules",
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def parse_command(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of a command line, and its overrides as `words`.

    Raises UserError for an unknown flag.
    """
    path = next((word for word in arguments if word.startswith(("--config-path", "-cp"))), None)
    if path:
        raise UserError(f"{path}: configs are in conf/; --config-dir <folder> adds your own")
    parser = Parser(None, add_help=False)  # of Hydra's flags those that this program supports
    parser.add_trust()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job"])
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--config-name", "-cn", default="train")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    given = parser.parse_intermixed_args(arguments)
    if given.multirun and given.cfg:
        raise UserError("--cfg: prints one config and --multirun has many; leave one of them out")
    if given.resolve and not given.cfg:
        raise UserError("--resolve: is for printing the config; add --cfg job, or leave it out")
    if given.estimate:
        if given.multirun:
            raise UserError("--estimate: estimates a single run; leave -m out")
        if any(word.startswith("resume=") for word in given.words):
            raise UserError("--estimate: estimates a new run; leave resume= out")
        given.words.append("estimate=true")
    return given


def flags(given: argparse.Namespace) -> list[str]:
    """The flags that are passed on to each job of a sweep."""
    name = ["--config-name", given.config_name] if given.config_name != "train" else []
    pairs = [("--config-dir", folder) for folder in given.config_dir]
    pairs += [("--trust", package) for package in given.trust]
    return [*name, *(word for pair in pairs for word in pair)]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a UserError as one line and exit with 2; other exceptions keep their traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w"))
    if isinstance(sys.stdout, TextIOWrapper):  # its encoding may lack characters of file names
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        except UserError as error:
            fail(str(error))
        except OSError as error:
            if not is_disk_error(error):
                raise
            fail(f"{error.filename or 'the disk'}: {error.strerror}; try another folder")
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)  # as in shells
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has ended, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at exit
        sys.exit(128 + signal.SIGPIPE)


def fail(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)

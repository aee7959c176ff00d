"""Atomic writing of files, safe reading of YAML, and the names of a run's checkpoints."""

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from classic_cnns import UserError

# Checkpoints; when a net is used, that of averaged weights comes first.
AVERAGED, BEST, LAST = "swa.ckpt", "best.ckpt", "last.ckpt"
MAX_DEPTH = 30  # levels of a file of YAML
DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
    errno.ENAMETOOLONG,
}  # fmt: skip


FLOAT, TIME = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads YAML as OmegaConf does, 20 times as fast: 1e-3 is a number, and a date is a text."""

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] != TIME]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Loader.add_implicit_resolver(
    FLOAT, re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def expand(key: str, value: object) -> Path:
    """The path `value`, which may be a number, with a leading ~ replaced.

    Raises UserError, which names `key`, if there is no such user or no home directory, and OSError
    for a name that is too long, which `Path.exists` no longer does since Python 3.14.
    """
    try:
        path = Path(str(value)).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError, ValueError):
            path.lstat()
        return path
    except RuntimeError as error:
        raise UserError(
            f"{key}={value}: no home directory is known for ~; try a path without it"
        ) from error


def is_disk_error(error: BaseException) -> bool:
    """Whether the disk is full or not writable, or the name too long; trying again is useless."""
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A temporary file next to `path` that replaces it once it is complete and synced."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def make_folder(path: Path, option: str) -> None:
    """Create a folder for output; UserError, which names the `option`, if that is impossible."""
    if str(path).encode(errors="replace") != os.fsencode(path):  # TensorBoard would not find it
        raise UserError(
            f"{option}={path}: is not UTF-8 in this locale; try PYTHONUTF8=1 before the command"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(0, "may not be written to")
    except OSError as error:
        raise UserError(f"{option}={path}: {error.strerror}; try another folder") from error


def write_text(path: str | Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: str | Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file, or None if it does not exist."""
    path = Path(path)
    return json.loads(path.read_text()) if path.exists() else None


def read_yaml(path: str | Path, most: int = 20_000) -> Any:
    """The content of a YAML file with at most `most` values; nothing is interpolated.

    Raises ValueError for more values, for deep nesting and for aliases, a few lines of which can
    expand to more than any memory holds; and the parser's error for a file that is not YAML.
    """
    with open(path, "rb") as file:
        content = file.read(50 * most + 1)
    depth = 0
    for number, event in enumerate(yaml.parse(content, Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases are not taken")
        if number > most or depth > MAX_DEPTH or len(content) > 50 * most:
            raise ValueError(
                f"more than {most:,} values, {50 * most:,} bytes or {MAX_DEPTH} levels"
            )
    values = yaml.load(content, Loader) or {}
    if not isinstance(values, (dict, list)):  # OmegaConf would read a text as another YAML
        raise ValueError("it has no keys")
    return values


def flatten(values: dict, prefix: str = "", groups: bool = False) -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; with `groups`, also the keys of nested mappings."""
    for key, value in values.items():
        inner = isinstance(value, dict) and value
        if inner:
            yield from flatten(value, f"{prefix}{key}.", groups)
        if groups or not inner:
            yield f"{prefix}{key}", value


def used_checkpoint(run: Path) -> Path | None:
    """The checkpoint of a run directory whose net is tested and used; None if it has none."""
    paths = (run / "checkpoints" / name for name in (AVERAGED, BEST, LAST))
    return next((path for path in paths if path.is_file()), None)


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, also of Lightning's own callback; None if it has none."""
    paths = (run / "checkpoints").glob("*.ckpt")
    return max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)

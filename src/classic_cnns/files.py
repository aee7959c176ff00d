"""Files that are either the old or the new version, never half of one."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from omegaconf import OmegaConf

DEEPEST = 30  # levels of a file of YAML
NO_ROOM_OR_RIGHT = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR
}  # fmt: skip


def disk_trouble(error: BaseException) -> bool:
    """Whether the disk is full or closed to us, which no other attempt changes."""
    return isinstance(error, OSError) and error.errno in NO_ROOM_OR_RIGHT


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file opened beside `path` that takes its place only when it is whole and on the disk."""
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


def write_json(path: str | Path, value: object) -> None:
    with replacing(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """What `write_json` wrote, or None where there is no such file."""
    path = Path(path)
    return json.loads(path.read_text()) if path.exists() else None


def read_yaml(path: str | Path, most: int = 20_000) -> Any:
    """What a file of at most so many values says, as plain ones of which nothing is looked up.

    Raises ValueError, or whatever the parser raises, for other files. Those with aliases are not
    taken, whose few lines can stand for more than any memory holds, nor deep ones.
    """
    with open(path, "rb") as file:
        content = file.read(50 * most + 1)
    depth = 0
    for number, event in enumerate(
        yaml.parse(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    ):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases are not taken")
        if number > most or depth > DEEPEST or len(content) > 50 * most:
            raise ValueError(f"more than {most:,} values, {50 * most:,} bytes or {DEEPEST} levels")
    text = content.decode()
    return OmegaConf.to_container(OmegaConf.create(text), resolve=False)

"""Files that are either the old or the new version, never half of one."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

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

"""Class folders of images in the layout of ImageNet. Torch is not imported here.

root/train/<class>/**/<name>.jpg      names that begin with a dot are ignored
root/val/<class>/...                  the same classes, or some of them
root/test/<class>/...                 optional; without it val/ is also the test set

A trained net can be evaluated on a folder that has only the split in question.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classic_cnns import UserError, printable
from classic_cnns.files import atomic_write, expand

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

SPLITS = "train", "val", "test"


def first_five(names: Sequence[str]) -> str:
    """The first five names for a message, with dots if there are more."""
    return printable(", ".join(names[:5]) + (", ..." if len(names) > 5 else ""))


def folder_of(root: str, split: str) -> Path:
    folder = expand("data.root", root).absolute() / split
    if split == "test" and not folder.is_dir():
        return folder.with_name("val")
    return folder


@contextmanager
def folder_errors(root: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"data.root={root}: {error.strerror}: {error.filename}") from error


def classes(root: str | None, evaluated: bool = False) -> list[str]:
    """The sorted names of the classes; a label is an index into this list.

    Raises UserError if train/ has fewer than two classes, or val/ or test/ has others. With
    `evaluated`, one of the three is enough.
    """
    if root is None:
        raise UserError(
            "data.root=null: must be a folder with train/<class>/ and val/<class>/; "
            "try data.root=<that folder>"
        )
    found: dict[str, list[str]] = {}
    with folder_errors(root):
        if not expand("data.root", root).is_dir():
            raise UserError(f"data.root={root}: there is no such folder; try another one")
        for split in SPLITS:
            folder = folder_of(root, split)
            if not folder.is_dir():
                if evaluated:
                    continue
                raise UserError(
                    f"data.root={root}: has no {split}/; it needs train/<class>/ and val/<class>/"
                )
            with os.scandir(folder) as entries:
                found[split] = sorted(e.name for e in entries if e.is_dir() and e.name[0] != ".")
            unknown = sorted(set(found[split]) - set(found.get("train", found[split])))
            if unknown:
                raise UserError(
                    f"data.root={root}: {folder.name}/ has the class {unknown[0]} that train/ "
                    "lacks; remove it, or add it to train/"
                )
    if not found:
        raise UserError(f"data.root={root}: has no test/; it needs test/<class>/<name>.jpg")
    if "train" not in found:
        return sorted(set().union(*found.values()))
    if (count := len(found["train"])) < 2:
        raise UserError(
            f"data.root={root}: train/ has {count or 'no'} class folder{'s' * (not count)} and at "
            "least two are needed; it needs train/<class>/<name>.jpg"
        )
    return found["train"]


def walk(folder: Path, seen: dict[str, int]) -> Iterator[str]:
    """All files in `folder` and its subfolders, except hidden ones.

    Links are followed; a link back to a folder that was visited is ignored.
    """
    seen[str(folder)] = -1  # unless it exists
    known: set[tuple[int, int]] = set()  # visited folders, by device and inode

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a class may be missing in val/
            raise error

    for place, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        found = os.stat(place)
        if (found.st_dev, found.st_ino) in known:
            below.clear()
            continue
        known.add((found.st_dev, found.st_ino))
        seen[place] = found.st_mtime_ns
        below[:] = sorted(name for name in below if name[0] != ".")
        yield from (os.path.join(place, name) for name in names if name[0] != ".")


def suffixes() -> set[str]:
    """The file name extensions of images."""
    from PIL import Image  # here, since every command imports this module

    return {s for s, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def pictures_in(names: Sequence[str]) -> list[str]:
    """The given files, and the images in the given folders; UserError for a folder without any."""
    paths: list[str] = []
    known = suffixes()
    for name in names:
        if os.path.isdir(name):
            try:
                files = sorted(walk(Path(name), {}))
            except OSError as error:
                raise UserError(f"{error.filename}: {error.strerror}; try others") from error
            own = [path for path in files if os.path.splitext(path)[1].lower() in known]
            if not own:
                raise UserError(
                    f"{name}: contains no pictures; name a folder with .png or .jpg files"
                )
            paths += own
        else:
            paths.append(name)  # missing files are reported like unreadable ones
    return paths


class Paths(Sequence[str]):
    """Paths stored as one array of their `names` below `base`: a million texts take 200 MB."""

    def __init__(self, base: str, names: np.ndarray) -> None:
        """`names` are bytes of a fixed length, dtype S."""
        self.base, self.names = base, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: Any) -> Any:
        return os.path.join(self.base, os.fsdecode(self.names[number]))


Index = dict[str, tuple[Paths, Any]]


def hash_names(index: Index) -> Any:
    """A SHA-256 hash of the names of all files, with line breaks between them."""
    found, before = sha256(), b""
    for paths, _ in index.values():
        for start in range(0, len(paths), 1000):  # all at once take 150 MB for a million
            found.update(before + b"\n".join(paths.names[start : start + 1000].tolist()))
            before = b"\n"
    return found


def files(root: str, split: str, seen: dict[str, int] | None = None) -> tuple[Paths, np.ndarray]:
    """The sorted paths of all images of a split, and their labels (int64).

    `seen` receives the visited folders and their modification times (ns). Files without an image's
    extension are left out and logged. Files are not opened, which would take minutes for a million;
    those that cannot be decoded are reported during training. Raises UserError if there are no
    images.
    """
    import numpy as np

    folder, known, names = folder_of(root, split), suffixes(), classes(root, evaluated=True)
    base = str(folder.parent)
    parts: list[np.ndarray] = []  # the names in each class
    wrong: list[str] = []
    with folder_errors(root):
        for name in names:
            own: list[bytes] = []
            for path in sorted(walk(folder / name, {} if seen is None else seen)):
                if os.path.splitext(path)[1].lower() in known:
                    own.append(os.fsencode(path[len(os.path.join(base, "")) :]))
                else:
                    wrong.append(path)
            parts.append(np.array(own, "S"))
    counts = list(map(len, parts))
    paths = Paths(base, np.concatenate(parts or [np.array([], "S")]))
    if split == "train" and 0 in counts:
        raise UserError(
            f"data.root={root}: train/{names[counts.index(0)]} has no images; "
            "remove the folder, or add some to it"
        )
    if not len(paths):
        raise UserError(
            f"data.root={root}: {folder.name}/ has no images; it needs "
            f"{folder.name}/<class>/<name>.jpg"
        )
    if wrong and folder.name == split:  # not a second time for val/ as the test set
        log.warning(
            "%s: %d of %d files do not have the extension of an image and are left out: %s",
            folder, len(wrong), len(wrong) + len(paths), first_five(wrong),
        )  # fmt: skip
    return paths, np.repeat(np.arange(len(counts)), counts)


def index(root: str, cache: Path) -> Index:
    """The `files` of each split; read from the .npz file `cache` if no folder has changed.

    A million files take ten seconds to list, and one second to read from the cache. If the cache
    cannot be written, it is skipped.
    """
    import numpy as np

    def changed(folder: str) -> int:
        return os.stat(folder).st_mtime_ns if os.path.isdir(folder) else -1

    began = time.time_ns()
    top = folder_of(root, "train").parent
    with suppress(Exception), np.load(cache) as kept:  # no cache yet, or a damaged one
        seen = json.loads(kept["seen"].item())
        if all(changed(folder) == moment for folder, moment in seen.items()):
            return {
                split: (Paths(str(top), kept[f"{split}_paths"]), kept[f"{split}_labels"])
                for split in SPLITS
                if f"{split}_paths" in kept
            }
    seen = {str(place): changed(str(place)) for place in (top, *(top / split for split in SPLITS))}
    there = [split for split in SPLITS if folder_of(root, split).is_dir()]
    found = {split: files(root, split, seen) for split in there}
    if max(seen.values()) > began - 10**9:
        return found  # a second change within the clock's resolution would go unnoticed
    kept = {"seen": np.array(json.dumps(seen))}
    for split, (paths, labels) in found.items():
        kept |= {f"{split}_paths": paths.names, f"{split}_labels": labels}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(cache) as file:
            np.savez(file, **kept)
    except OSError as error:
        log.warning("%s: %s; the folders are listed at every start", cache, error.strerror)
    return found

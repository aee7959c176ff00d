"""Folders of images, one for each class, in the layout of ImageNet; nothing here imports torch.

root/train/<class>/<any name>.jpg     also in folders below; names that begin with a dot are passed
root/val/<class>/...                  the same classes, or some of them
root/test/<class>/...                 without it val/ is the test set too, as usual for ImageNet
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classic_cnns import UserError
from classic_cnns.files import replacing

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)


def folder_of(root: str, split: str) -> Path:
    folder = Path(str(root)).expanduser() / split
    if split == "test" and not folder.is_dir():
        return folder.with_name("val")
    return folder


@contextmanager
def one_line(root: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"data.root={root}: {error.strerror}: {error.filename}") from error


def classes(root: str | None) -> list[str]:
    """The names of the classes, sorted; a label is the place in this list.

    Raises UserError where `root` has no train/ and val/ with the same two classes or more.
    """
    if root is None:
        raise UserError(
            "data.root=null: must be a folder with train/<class>/ and val/<class>/; "
            "try data.root=<that folder>"
        )
    found = {}
    with one_line(root):
        for split in ("train", "val", "test"):
            folder = folder_of(root, split)
            if not folder.is_dir():
                raise UserError(
                    f"data.root={root}: has no {split}/; it needs train/<class>/ and val/<class>/"
                )
            with os.scandir(folder) as entries:
                found[split] = sorted(e.name for e in entries if e.is_dir() and e.name[0] != ".")
            unknown = sorted(set(found[split]) - set(found["train"]))
            if unknown:
                raise UserError(
                    f"data.root={root}: {folder.name}/ has the class {unknown[0]} that train/ "
                    "lacks; remove it, or add it to train/"
                )
    if (count := len(found["train"])) < 2:
        raise UserError(
            f"data.root={root}: train/ has {count or 'no'} class folder{'s' * (not count)} and "
            "two are the least; it needs train/<class>/<name>.jpg"
        )
    return found["train"]


def walk(folder: Path, seen: dict[str, int]) -> Iterator[str]:
    """All files in the folder and in those below it, but for hidden ones.

    Links are followed, also to elsewhere; one that leads back to a folder of before is passed.
    """
    seen[str(folder)] = -1  # unless it is there
    known: set[tuple[int, int]] = set()  # folders, by device and number

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
    """Of files that are images by their names."""
    from PIL import Image  # here, since each start of a program imports this file

    return {s for s, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def pictures_in(names: Sequence[str]) -> list[str]:
    """The files, and those in the folders that are images by their names; UserError without any."""
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
                raise UserError(f"{name}: holds no pictures; name a folder with .png or .jpg files")
            paths += own
        else:
            paths.append(name)  # a file that is not there is told like one that cannot be read
    return paths


class Paths(Sequence[str]):
    """Paths of files as one array of bytes: a million of them as texts would take 200 MB."""

    def __init__(self, base: str, names: np.ndarray, ends: np.ndarray) -> None:
        """`names` (uint8) are relative to `base`, a line each; `ends` (int64) are the ends."""
        self.base, self.names, self.ends = base, names, ends

    @classmethod
    def of(cls, base: str, groups: Iterable[Sequence[str]]) -> Paths:
        """Of names in groups, no two of which have to be in memory at a time."""
        import numpy as np  # here, since each start of a program imports this file

        names, lengths = bytearray(), [np.empty(0, np.int64)]
        for group in groups:
            encoded = [os.fsencode(name) + b"\n" for name in group]
            names += b"".join(encoded)
            lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        return cls(base, np.frombuffer(names, np.uint8), np.cumsum(np.concatenate(lengths)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: Any) -> Any:
        start = self.ends[number - 1] if number else 0
        return os.path.join(
            self.base, os.fsdecode(self.names[start : self.ends[number] - 1].tobytes())
        )


Index = dict[str, tuple[Paths, Any]]


def files(root: str, split: str, seen: dict[str, int] | None = None) -> tuple[Paths, np.ndarray]:
    """The paths of all images of a split, sorted, and their labels (int64).

    `seen` gets the folders that were looked into, and when they were changed (ns). Raises UserError
    where there is none, or for files that are no images by their names: to open a million files
    takes minutes. Files whose names mislead are found when they are decoded.
    """
    import numpy as np

    folder, known = folder_of(root, split), suffixes()
    base = str(folder.parent)
    counts: list[int] = []
    wrong: list[str] = []

    def names() -> Iterator[list[str]]:
        for name in classes(root):
            own = sorted(walk(folder / name, {} if seen is None else seen))
            counts.append(len(own))
            wrong.extend(path for path in own if os.path.splitext(path)[1].lower() not in known)
            yield [path[len(base) + 1 :] for path in own]

    with one_line(root):
        paths = Paths.of(base, names())
    if split == "train" and 0 in counts:
        raise UserError(
            f"data.root={root}: train/{classes(root)[counts.index(0)]} has no images; "
            "remove the folder, or add some to it"
        )
    if not len(paths):
        raise UserError(
            f"data.root={root}: {folder.name}/ has no images; it needs "
            f"{folder.name}/<class>/<name>.jpg"
        )
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"data.root={root}: {len(wrong)} of {len(paths)} files in {folder.name}/ are no "
            f"images by their names; remove or rename {', '.join(wrong[:5])}{more}"
        )
    return paths, np.repeat(np.arange(len(counts)), counts)


def index(root: str, cache: Path) -> Index:
    """`files` of all splits: from `cache`, a .npz file, where no folder was changed since.

    A million files are looked through in ten seconds, and found in the cache in one. Where it
    cannot be written it is done without.
    """
    import numpy as np

    def changed(folder: str) -> int:
        return os.stat(folder).st_mtime_ns if os.path.isdir(folder) else -1

    try:
        with np.load(cache) as kept:
            seen = json.loads(kept["seen"].tobytes())
            if all(changed(folder) == moment for folder, moment in seen.items()):
                return {
                    split: (
                        Paths(base, kept[f"{split}_names"], kept[f"{split}_ends"]),
                        kept[f"{split}_labels"],
                    )
                    for split, base in json.loads(kept["splits"].tobytes()).items()
                }
    except Exception:  # none yet, or what a damaged file raises
        pass
    began, top = time.time_ns(), Path(str(root)).expanduser()
    splits = ("train", "val", "test")
    seen = {str(place): changed(str(place)) for place in (top, *(top / split for split in splits))}
    found = {split: files(root, split, seen) for split in splits}
    if max(seen.values()) > began - 10**9:  # a change in the same tick of the clock looks like none
        return found
    arrays = {"seen": seen, "splits": {split: paths.base for split, (paths, _) in found.items()}}
    kept = {
        key: np.frombuffer(json.dumps(value).encode(), np.uint8) for key, value in arrays.items()
    }
    for split, (paths, labels) in found.items():
        own = {"names": paths.names, "ends": paths.ends, "labels": labels}
        kept |= {f"{split}_{name}": array for name, array in own.items()}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache) as file:
            np.savez(file, **kept)
    except OSError as error:
        log.warning("%s: %s; the folders are looked through at each start", cache, error.strerror)
    return found

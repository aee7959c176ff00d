"""Folders of images, one for each class, in the layout of ImageNet; nothing here imports torch.

root/train/<class>/<any name>.jpg     also in folders below; names that begin with a dot are passed
root/val/<class>/...                  the same classes, or some of them
root/test/<class>/...                 without it val/ is the test set too, as usual for ImageNet
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from classic_cnns import UserError


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


def walk(folder: Path) -> Iterator[str]:
    """All files in the folder and in those below it, but for hidden ones."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a class may be missing in val/
            raise error

    for place, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        below[:] = [name for name in below if name[0] != "."]
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
            own = sorted(p for p in walk(Path(name)) if os.path.splitext(p)[1].lower() in known)
            if not own:
                raise UserError(f"{name}: holds no pictures; name a folder with .png or .jpg files")
            paths += own
        else:
            paths.append(name)  # a file that is not there is told like one that cannot be read
    return paths


def files(root: str, split: str) -> tuple[list[str], list[int]]:
    """The paths of all images of a split, sorted, and their labels.

    Raises UserError where there is none, or for files that are no images by their names: to open
    a million files takes minutes. Those that deceive are found out when they are decoded.
    """
    folder, paths, labels = folder_of(root, split), [], []
    with one_line(root):
        for label, name in enumerate(classes(root)):
            own = sorted(walk(folder / name))
            paths += own
            labels += [label] * len(own)
    if not paths:
        raise UserError(
            f"data.root={root}: {folder.name}/ has no images; it needs "
            f"{folder.name}/<class>/<name>.jpg"
        )
    known = suffixes()
    wrong = [path for path in paths if os.path.splitext(path)[1].lower() not in known]
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"data.root={root}: {len(wrong)} of {len(paths)} files in {folder.name}/ are no "
            f"images by their names; remove or rename {', '.join(wrong[:5])}{more}"
        )
    return paths, labels

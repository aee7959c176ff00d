"""Folders of images, one for each class, in the layout of ImageNet; nothing here imports torch.

root/train/<class>/<any name>.jpg
root/val/<class>/...                  the same classes, or some of them
root/test/<class>/...                 without it val/ is the test set too, as usual for ImageNet
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from classic_cnns.errors import UserError

log = logging.getLogger(__name__)

# How files of the formats that Pillow reads begin.
SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"BM",
    b"GIF8",
    b"RIFF",
    b"II*\0",
    b"MM\0*",
    b"P5",
    b"P6",
)


def folder_of(root: str | None, split: str) -> Path:
    folder = Path(str(root)).expanduser() / split
    if split == "test" and not folder.is_dir():
        return folder.with_name("val")
    return folder


def classes(root: str | None) -> list[str]:
    """The names of the classes, sorted; a label is the place in this list.

    Raises UserError where `root` has no train/ and val/ with at least two classes.
    """
    if root is None:
        raise UserError("data.root=null: must be a folder with train/<class>/ and val/<class>/")
    found = {}
    for split in ("train", "val", "test"):
        folder = folder_of(root, split)
        if not folder.is_dir():
            raise UserError(
                f"data.root={root}: has no {split}/; needed are train/<class>/ and val/<class>/"
            )
        with os.scandir(folder) as entries:
            found[split] = sorted(entry.name for entry in entries if entry.is_dir())
        unknown = sorted(set(found[split]) - set(found["train"]))
        if unknown:
            raise UserError(
                f"data.root={root}: {folder.name}/ has the class {unknown[0]} that train/ lacks; "
                "remove it, or add it to train/"
            )
    if len(found["train"]) < 2:
        raise UserError(
            f"data.root={root}: train/ has {len(found['train'])} class folders; two are the least"
        )
    return found["train"]


def files(root: str, split: str) -> tuple[list[str], list[int]]:
    """The paths of all images of a split, sorted, and their labels.

    Raises UserError where there is none, or for files that are no images, by their first bytes.
    """
    folder, paths, labels = folder_of(root, split), [], []
    for label, name in enumerate(classes(root)):
        if (folder / name).is_dir():
            with os.scandir(folder / name) as entries:
                own = sorted(entry.path for entry in entries if entry.is_file())
            paths += own
            labels += [label] * len(own)
    with ThreadPoolExecutor() as pool:
        wrong = [
            path for path, right in zip(paths, pool.map(is_image, paths), strict=True) if not right
        ]
    if wrong:
        raise UserError(
            f"data.root={root}: {len(wrong)} of {len(paths)} files are no images, like {wrong[0]}; "
            f"remove them: {' '.join(wrong[1:10])}"
        )
    if not paths:
        raise UserError(
            f"data.root={root}: {folder.name}/ has no images; it needs <class>/<name>.jpg"
        )
    return paths, labels


def is_image(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4).startswith(SIGNATURES)

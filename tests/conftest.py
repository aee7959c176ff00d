"""A tiny MNIST in the real file format, and a config for it, so that tests need no network."""

import gc
import logging
import os
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from omegaconf import OmegaConf

from classic_cnns.trainer.devices import core_count, limit_spinning
from tests.forks import SRC, Process, Server

# A shell gives what it starts in the background a deaf ear for Ctrl-C, which our children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
# With it a child prints a line in two pieces, between which another one may print.
os.environ.pop("PYTHONUNBUFFERED", None)

# As the command does before torch is imported: tests train in this process too.
limit_spinning()
# Tests that run side by side share the cores; each of their processes reads this with torch.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, core_count() // int(workers))))

TRAIN, TEST, VAL = 640, 200, 128
FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported stays: the collector need not look at it again


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or libraries tell at their end that they leak


class Tiny(NamedTuple):
    folder: Path  # has MNIST/raw/, the layout of torchvision
    arrays: dict[str, np.ndarray]
    sums: dict[str, str]


def idx(array: np.ndarray) -> bytes:
    """The IDX format: two zeros, 8 for unsigned bytes, the rank, big-endian sizes, the bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A command sets what its process says; the next test finds that as it was."""
    log = logging.getLogger("classic_cnns")
    level, handlers = log.level, log.handlers[:]
    yield
    log.setLevel(level)
    log.handlers[:] = handlers


@pytest.fixture(scope="session")
def tiny_arrays() -> dict[str, np.ndarray]:
    """One pattern of strokes for each class, under noise: no two images are the same."""
    random = np.random.RandomState(5)
    patterns = np.kron(random.rand(10, 7, 7) < 0.15, np.ones((4, 4)))
    arrays = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        labels = random.randint(10, size=count)
        images = 0.9 * patterns[labels] + 0.1 * random.rand(count, 28, 28)
        arrays[f"{split}_images"] = (images * 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    return arrays


@pytest.fixture
def tiny_mnist(tmp_path: Path, tiny_arrays: dict[str, np.ndarray]) -> Tiny:
    """A data_dir that holds raw files as from the official site, and no cache yet."""
    folder = tmp_path / "tiny_mnist"
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in tiny_arrays.items():
        (raw / FILES[name]).write_bytes(idx(array))
    sums = {name: sha256(array.tobytes()).hexdigest() for name, array in tiny_arrays.items()}
    return Tiny(folder, tiny_arrays, sums)


@pytest.fixture
def tiny_config_dir(tmp_path: Path, tiny_mnist: Tiny) -> Path:
    """For `train.py --config-dir <it> data=tiny data_dir=<tiny_mnist.folder>`.

    Five epochs take 2 seconds and end without a test error.
    """
    folder = tmp_path / "tiny_conf"
    (folder / "data").mkdir(parents=True)
    sizes = {"train_size": TRAIN, "val_size": VAL}
    tiny = {"defaults": ["mnist"], **sizes, "batch_size": 16, "sha256": tiny_mnist.sums}
    OmegaConf.save(tiny, folder / "data" / "tiny.yaml")
    return folder


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def server_without_torch(tmp_path_factory) -> Iterator[Server]:
    """Its commands raise where they import torch: a stub stands in its place."""
    stub = tmp_path_factory.mktemp("stub")
    (stub / "torch").mkdir()
    (stub / "torch" / "__init__.py").write_text('raise ImportError("torch was imported")\n')
    with Server(PYTHONPATH=f"{stub}:{SRC}", CUDA_VISIBLE_DEVICES="") as server:
        yield server


@pytest.fixture
def fork(server) -> Iterator[Callable[..., Process]]:
    """A function that starts a program of ours at once; the test leaves none behind."""
    yield server.start
    server.end()


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen]]:
    """A function that starts a process with its output in pipes; the test leaves none behind."""
    processes = []

    def spawn(command: list, **options) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, **pipes, **options))
        return processes[-1]

    yield spawn
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()

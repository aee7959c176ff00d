"""Fixtures of all tests: a tiny MNIST in the real file format, and processes."""

import gc
import logging
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from omegaconf import OmegaConf

from classic_cnns.trainer.devices import core_count
from tests.forks import SRC, Process, Server

# Background processes of a shell ignore SIGINT, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# With it a child writes a line in two parts, and another child may write between them.
os.environ.pop("PYTHONUNBUFFERED", None)

# Parallel test processes share the cores. torch reads these variables when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, core_count() // int(workers))))

OWN_PARTS = Path(__file__).parent / "own_parts"
TRAIN_SIZE, TEST_SIZE, VAL_SIZE = 640, 200, 128
FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def pytest_collection_finish() -> None:
    gc.freeze()  # the collector skips what is imported, which saves time


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # libraries would report leaks at exit


class Tiny(NamedTuple):
    folder: Path  # contains MNIST/raw/, as torchvision stores it
    arrays: dict[str, np.ndarray]
    sums: dict[str, str]


def idx(array: np.ndarray) -> bytes:
    """The IDX format: two zeros, 8 for unsigned bytes, the rank, big-endian sizes, the bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(autouse=True)
def restore_log() -> Iterator[None]:
    """Undo what commands change, also those of fixtures that several tests share."""
    yield
    log = logging.getLogger("classic_cnns")
    log.setLevel(logging.NOTSET)
    log.handlers.clear()


@pytest.fixture(scope="session")
def tiny_arrays() -> dict[str, np.ndarray]:
    """A pattern of squares for each class, with noise, so that no two images are equal."""
    random = np.random.RandomState(5)
    patterns = np.kron(random.rand(10, 7, 7) < 0.15, np.ones((4, 4)))
    arrays = {}
    for split, count in (("train", TRAIN_SIZE), ("test", TEST_SIZE)):
        labels = random.randint(10, size=count)
        images = 0.9 * patterns[labels] + 0.1 * random.rand(count, 28, 28)
        arrays[f"{split}_images"] = (images * 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    return arrays


@pytest.fixture
def tiny_mnist(tmp_path: Path, tiny_arrays: dict[str, np.ndarray]) -> Tiny:
    """A data_dir that contains the raw files of MNIST, without a cache."""
    folder = tmp_path / "tiny_mnist"
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in tiny_arrays.items():
        (raw / FILES[name]).write_bytes(idx(array))
    sums = {name: sha256(array.tobytes()).hexdigest() for name, array in tiny_arrays.items()}
    return Tiny(folder, tiny_arrays, sums)


@pytest.fixture
def tiny_config_dir(tmp_path: Path, tiny_mnist: Tiny) -> Path:
    """The folder for `train.py --config-dir DIR data=tiny data_dir=<tiny_mnist.folder>`.

    Five epochs take 2 seconds and reach a test error of 0.
    """
    folder = tmp_path / "tiny_conf"
    (folder / "data").mkdir(parents=True)
    sizes = {"train_size": TRAIN_SIZE, "val_size": VAL_SIZE}
    tiny = {"defaults": ["mnist"], **sizes, "batch_size": 16, "sha256": tiny_mnist.sums}
    OmegaConf.save(tiny, folder / "data" / "tiny.yaml")
    return folder


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def server_without_torch(tmp_path_factory) -> Iterator[Server]:
    """A server whose commands fail if they import torch, because a stub replaces it."""
    stub = tmp_path_factory.mktemp("stub")
    (stub / "torch").mkdir()
    (stub / "torch" / "__init__.py").write_text('raise ImportError("torch was imported")\n')
    with Server(PYTHONPATH=f"{stub}:{SRC}", CUDA_VISIBLE_DEVICES="") as server:
        yield server


@pytest.fixture
def fork(server) -> Iterator[Callable[..., Process]]:
    """A function that forks one of our programs; all are killed after the test."""
    yield server.start
    server.end()


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen]]:
    """A function that starts a process with its output in pipes; all are killed after the test."""
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


@pytest.fixture
def train(tiny_mnist, tiny_config_dir, tmp_path, monkeypatch):
    """A function that makes a run of two epochs in `tmp_path` and returns its result.

    Test files whose runs are of another kind have a `train` of their own.
    """
    from classic_cnns.config.compose import compose  # here, since importing torch takes seconds
    from classic_cnns.run import run as api

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def train(*words: str) -> dict:
        defaults = [
            "data=tiny", f"data_dir={tiny_mnist.folder}", "trainer.accelerator=cpu",
            "trainer.max_epochs=2", "data.batch_size=32", "trainer.log_every_n_steps=2",
            "run_dir=run",
        ]  # fmt: skip
        if not any("callbacks" in word or "debug" in word for word in words):
            defaults.append("~callbacks.pictures")  # they take half of the time
        if any(word.startswith("resume=") for word in words):
            defaults = []
        overridden = {word.lstrip("+").partition("=")[0] for word in words}
        defaults = [word for word in defaults if word.partition("=")[0] not in overridden]
        if any(word.startswith("data=") and word != "data=tiny" for word in words):
            defaults = [word for word in defaults if not word.startswith(("data.", "data_dir"))]
        folders = [str(tiny_config_dir), str(OWN_PARTS)]
        return api.train(compose(*defaults, *words, config_dirs=folders))

    return train

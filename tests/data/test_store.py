"""Stores of prepared images: their contents, when they are made, interruptions and errors."""

import errno
import fcntl
import os
import random
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from classic_cnns import UserError
from classic_cnns.data import folders, store
from classic_cnns.data.pictures import Form, read_picture
from classic_cnns.data.store import Files
from tests.data.test_image_folder import SIDE, data, root, same_batches, truncate  # noqa: F401

FORM = Form(3, SIDE)


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr(store, "core_count", lambda: 0)
    monkeypatch.setattr(store, "BLOCK", 4)
    monkeypatch.delattr(os, "preadv", raising=False)  # Python for macOS may lack it


@pytest.fixture
def make(root, tmp_path, monkeypatch):  # noqa: F811
    """A function that makes or opens a store of the images in `root`."""

    def make(make=True, must=False, quality=0, form=FORM, counted=read_picture, name="store"):
        index = folders.index(str(root), tmp_path / "index.npz")
        monkeypatch.setattr(store, "read_picture", counted)
        return store.prepare(index, tmp_path / name, form, quality, make, must)

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.*"))}


def all_images(one) -> torch.Tensor:
    ((images, _),) = one.in_order([range(len(one.paths))], 1)
    return images


# --- Reading --------------------------------------------------------------------------------------


def test_test_images_of_their_own_are_stored_too(root, make):  # noqa: F811
    shutil.copytree(root / "train", root / "test")
    stores = make()
    assert torch.equal(all_images(stores["test"]), all_images(stores["train"]))


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader"])
def test_batches_from_the_raw_store_equal_those_from_the_folders(root, loader, caplog):  # noqa: F811
    truncate(sorted((root / "train").rglob("*.*"))[3])
    direct, prepared = data(root), data(root, prepare=True, workers=2)
    assert direct.stores is None and prepared.stores
    caplog.clear()
    assert same_batches(getattr(direct, loader)(), getattr(prepared, loader)())
    lines = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(lines) == 2 * (loader == "train_dataloader")  # each pass reports the damaged file
    assert len(set(lines)) <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_store_is_smaller_and_almost_equal(make, tmp_path, channels):
    form = Form(channels, 128)
    raw, jpeg = make(form=form)["val"], make(form=form, quality=90, name="jpegs")["val"]
    assert all_images(raw).shape == (10, channels, 128, 128)
    difference = all_images(raw).float() - all_images(jpeg)
    assert 0 < difference.abs().mean() < 4
    sizes = [(tmp_path / name / "val.bin").stat().st_size for name in ("store", "jpegs")]
    assert sizes[1] < sizes[0] / 3


def test_a_jpeg_that_is_as_long_as_its_pixels_is_decoded(make, monkeypatch):
    form = Form(1, 48)
    usual = all_images(make(form=form, quality=90)["val"])
    pack = store.EncodedBlocks.pack  # a decoder ignores what follows the end of a JPEG
    monkeypatch.setattr(store.EncodedBlocks, "pack", lambda *given: pack(*given).ljust(48 * 48))
    long = make(form=form, quality=90, name="long")["val"]
    assert set(long.records["length"]) == {48 * 48}
    assert torch.equal(all_images(long), usual)


def test_a_damaged_image_in_the_store_is_read_from_its_file(make, root, tmp_path, caplog):  # noqa: F811
    whole = all_images(make()["train"])
    with open(tmp_path / "store" / "train.bin", "r+b") as file:
        file.seek(3 * (3 * SIDE * SIDE) + 100)
        bit = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([bit[0] ^ 1]))
    again = make()["train"]
    caplog.clear()
    ((images, read),) = again.in_order([range(21)], 1)
    assert torch.equal(images, whole) and len(read) == 21
    (line,) = caplog.messages
    assert "1 images are damaged" in line and again.paths[3] in line
    assert make(make=False) is None  # it must be made again


def test_a_run_goes_on_while_and_after_another_one_makes_its_store_again(make, root, tmp_path):  # noqa: F811
    here = make()["train"]
    whole = all_images(here)
    manifest = tmp_path / "store" / "store.json"
    (tmp_path / "store" / "train.bin").rename(tmp_path / "moved")
    manifest.write_text(manifest.read_text())  # the other run has begun
    assert torch.equal(all_images(here), whole)
    (tmp_path / "moved").rename(tmp_path / "store" / "train.bin")
    added = root / "train" / "cat" / "0.jpg"  # the first one
    shutil.copy(sorted((root / "train" / "cat").glob("*.jpg"))[3], added)
    assert make()
    before = contents(tmp_path / "store")
    assert torch.equal(all_images(here), whole)  # all of its images are elsewhere now
    assert contents(tmp_path / "store") == before and make(make=False)


def test_a_file_system_without_locks_has_a_store_too(make, monkeypatch):
    def flock(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert make()


# --- When it is made ------------------------------------------------------------------------------


def test_a_store_is_made_again_if_a_file_is_added_removed_or_changed(make, root, caplog):  # noqa: F811
    caplog.set_level("INFO")
    calls = []

    def counted(path, form):
        calls.append(path)
        return read_picture(path, form)

    def prepared() -> int:
        calls.clear()
        stored = all_images(make(counted=counted)["train"])
        count = len(set(calls))
        paths, _ = folders.files(str(root), "train")
        assert torch.equal(stored, Files(paths, FORM)[range(len(paths))][0])
        return count

    files = sorted((root / "train" / "cat").glob("*.*"))
    assert prepared() == 31 and prepared() == 0
    shutil.copy(files[0], files[0].with_name("new.jpg"))
    assert prepared() == 32 and "files were added, removed or changed" in caplog.text
    files[0].unlink()
    assert prepared() == 31 and prepared() == 0
    shutil.copy(files[2], files[1])
    assert prepared() == 1  # decoded when it is read
    assert prepared() == 31 and prepared() == 0


def test_without_make_an_existing_store_is_used_and_none_is_made(make, tmp_path):
    assert make(make=False) is None and not (tmp_path / "store").exists()
    make()
    assert make(make=False)
    with open(tmp_path / "store" / "store.json", "w") as file:
        file.write('{"format": 1}')
    assert make(make=False) is None


def test_an_interrupted_preparation_continues(make, tmp_path):
    make()
    whole, generator = contents(tmp_path / "store"), random.Random(0)
    for _ in range(8):
        records = generator.randrange(22)
        for name, size in (("bin", 3 * SIDE * SIDE), ("records", 24)):
            path = tmp_path / "store" / f"train.{name}"
            extra = generator.randrange(size)  # an image is written before its record
            path.write_bytes(whole[f"train.{name}"][: records * size + extra])
        for name in ("val.bin", "val.records"):
            (tmp_path / "store" / name).unlink()
        (tmp_path / "store" / "store.json").write_bytes(
            whole["store.json"].replace(b',\n  "whole": true', b"")
        )
        assert make() and contents(tmp_path / "store") == whole


def test_of_two_concurrent_preparations_one_waits_for_the_other(make, caplog):
    calls, found = [], []
    caplog.set_level("INFO")
    started, proceed = threading.Event(), threading.Event()

    def counted(path, form):
        calls.append(path)
        started.set()
        proceed.wait(10)
        return read_picture(path, form)

    threads = [threading.Thread(target=lambda: found.append(make(counted=counted))) for _ in "ab"]
    threads[0].start()
    started.wait(10)
    threads[1].start()
    while "another process prepares it" not in caplog.text:
        assert threads[1].is_alive()
    proceed.set()
    for thread in threads:
        thread.join()
    # For the estimate 21 images are decoded twice.
    assert len(found) == 2 and all(found) and len(calls) == len(set(calls)) + 21
    assert torch.equal(all_images(found[0]["train"]), all_images(found[1]["train"]))


# --- Errors ---------------------------------------------------------------------------------------


def test_without_disk_space_a_run_reads_the_folders_and_the_command_fails(
    make, monkeypatch, caplog
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    caplog.set_level("INFO")
    assert make() is None
    (line,) = [r.message for r in caplog.records if "no room" in r.message]
    assert "raw (data.store=raw) 0.1 MB" in line and "JPEGs of quality 90" in line
    with pytest.raises(UserError, match="^data.store=raw: no room; 31 images"):
        make(must=True)


def test_a_full_disk_is_reported_in_one_line_and_keeps_the_images(make, monkeypatch, tmp_path):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    calls = []

    def counted(path, form):
        calls.append(path)
        return read_picture(path, form)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr(store, "write_json", lambda path, _: Path(path).write_text("{}"))
        with pytest.raises(UserError, match="No space left on device; make room and start again"):
            make()
    before = contents(tmp_path / "store")["train.bin"]
    assert len(before) == 21 * 3 * SIDE * SIDE
    assert make(counted=counted)


def test_a_newer_store_is_refused(make, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="was prepared by a newer version .format 99, known"):
        make()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"format": 0}', "an earlier version made it"),
        *((text, "store.json is damaged") for text in ("{", "", "[]", "{}", '{"format": "1"}')),
    ],
)
def test_an_older_or_damaged_store_is_made_again(make, tmp_path, content, why, caplog):
    caplog.set_level("INFO")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text(content)
    assert make() and f"{why}; preparing again" in caplog.text


def test_each_image_size_has_its_own_store(root):  # noqa: F811
    one, other = data(root, prepare=True), data(root, prepare=True, size=48)
    assert all_images(one.stores["val"]).shape == (10, 3, SIDE, SIDE)
    assert all_images(other.stores["val"]).shape == (10, 3, 48, 48)


def test_without_write_access_the_folders_are_read(make, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(store, "write_json", refuse)
    assert make() is None and "Read-only file system; images are read from" in caplog.text
    with pytest.raises(UserError, match="Read-only file system; .* try data_dir=<another folder>$"):
        make(must=True)


# --- Many files -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_index_of_100000_files_is_small_and_reused(tmp_path):
    names = [f"n{number:08}" for number in range(200)]
    for name in names:
        (tmp_path / "images" / "val" / name).mkdir(parents=True)
        folder = tmp_path / "images" / "train" / name
        folder.mkdir(parents=True)
        for number in range(500):
            (folder / f"{name}_{number}.JPEG").symlink_to("/nowhere.jpg")
    (tmp_path / "images" / "val" / names[0] / "a.JPEG").symlink_to("/nowhere.jpg")
    for path in [
        tmp_path / "images",
        *(tmp_path / "images").glob("*"),
        *(tmp_path / "images").glob("*/*"),
    ]:
        os.utime(path, (1e9, 1e9))  # folders changed within this second are not cached
    cache = tmp_path / "index.npz"
    first = folders.index(str(tmp_path / "images"), cache)
    assert cache.stat().st_size < 100_000 * 60  # per file: its name and 16 more bytes
    again = folders.index(str(tmp_path / "images"), cache)
    paths, labels = again["train"]
    assert len(paths) == 100_000 and list(paths) == list(first["train"][0])
    assert np.array_equal(labels, np.repeat(np.arange(200), 500))
    (tmp_path / "images" / "train" / names[3] / "new.JPEG").touch()
    assert len(folders.index(str(tmp_path / "images"), cache)["train"][0]) == 100_001

"""Class folders of images: decoding, batches, mistakes in folders, and whole runs."""

import errno
import json
import os
import re
import shutil
import struct
import zlib
from collections import Counter
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.transforms.v2 import functional as vision

from classic_cnns import UserError
from classic_cnns.classifier import Classifier
from classic_cnns.config.compose import Composer, compose
from classic_cnns.data import folders, pictures
from classic_cnns.data.image_folder import ImageFolderData, imagenet_names
from classic_cnns.data.pictures import decode
from classic_cnns.data.transforms import RandomCrop, RandomFlip
from classic_cnns.run.build import build
from classic_cnns.run.evaluate import evaluate
from classic_cnns.run.predict import predict
from classic_cnns.run.run import run
from classic_cnns.run.trained import data_of, load_net
from tests.runs import events

SIDE = 40  # of the decoded images; 256 in conf/
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")

KINDS = [("RGB", "jpg"), ("L", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("P", "gif")]


def picture(seed: int, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Smooth colours with noise, as in a photograph."""
    random = np.random.RandomState(seed)
    small = Image.fromarray(random.randint(0, 256, (5, 6, 3)).astype(np.uint8))
    large = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).astype(int)
    noisy = large + random.randint(-9, 10, large.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """21 training and 10 validation images of all kinds and shapes in two classes."""
    monkeypatch.setenv("CLASSIC_CNNS_DATA", str(tmp_path / "cache"))
    for split, count in (("train", 21), ("val", 10)):
        for number in range(count):
            mode, suffix = KINDS[number % len(KINDS)]
            size = (50 + number, 44) if number % 2 else (41, 47 + number)
            folder = tmp_path / "images" / split / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            picture(100 * (split == "val") + number, size, mode).save(
                folder / f"{number:02}.{suffix}"
            )
    return tmp_path / "images"


def data(root: Path, **options) -> ImageFolderData:
    options = {
        "dataset": "image_folder", "channels": 3, "size": SIDE, "num_classes": 2, "workers": 0,
        "batch_size": 8, "eval_batch_size": 4, "augment": "crop_flip", "seed": 3,
        "test_patches": "centre",
        "augmentations": {"none": [], "crop_flip": [RandomCrop(32), RandomFlip()]},
        "input": {"size": 32, "fit": "crop", "low": 0, "high": 255, "subtract_mean": False},
    } | options  # fmt: skip
    module = ImageFolderData(root=str(root), **options)
    module.prepare_data()
    module.setup("fit")
    return module


def truncate(path: Path, bytes_kept: int = 200) -> None:
    path.write_bytes(path.read_bytes()[:bytes_kept])


def by_torchvision(path: Path) -> np.ndarray:
    """torchvision's resize and central crop: (3, SIDE, SIDE) uint8."""
    with Image.open(path) as file:
        image = vision.resize(file.convert("RGB"), SIDE)
    return np.asarray(vision.center_crop(image, [SIDE, SIDE])).transpose(2, 0, 1)


# --- Decoding -------------------------------------------------------------------------------------


def test_images_of_all_kinds_are_decoded_as_by_torchvision(root):
    paths = sorted(root.rglob("*.*"))
    assert len(paths) == 31
    for path in paths:
        result = decode(str(path), SIDE)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result.transpose(2, 0, 1), by_torchvision(path))


@pytest.mark.fact(
    "The shorter side is resized to 256 pixels, then the central 256x256 are cropped",
    source="Krizhevsky 2012, section 2",
    code="data/pictures.py:decode",
)
@pytest.mark.parametrize("size", [(256, 256), (500, 375), (301, 511), (255, 300), (20, 333)])
def test_images_of_256_pixels_equal_those_of_torchvision(tmp_path, size):
    picture(1, size).save(tmp_path / "a.jpg")
    expected = vision.resize(Image.open(tmp_path / "a.jpg"), 256)
    expected = np.asarray(vision.center_crop(expected, [256, 256]))
    np.testing.assert_array_equal(decode(str(tmp_path / "a.jpg"), 256), expected)


def test_a_large_jpeg_decoded_at_reduced_size_is_almost_equal(tmp_path):
    picture(1, (1200, 900)).save(tmp_path / "a.jpg", quality=95)
    expected = vision.resize(Image.open(tmp_path / "a.jpg"), 256)
    expected = np.asarray(vision.center_crop(expected, [256, 256])).astype(int)
    assert np.abs(decode(str(tmp_path / "a.jpg"), 256) - expected).mean() < 1


def test_a_large_photograph_is_decoded_and_a_picture_of_other_kinds_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 200_000)
    for name in ("a.jpg", "a.png"):
        picture(1, (800, 600)).save(tmp_path / name)
    assert decode(str(tmp_path / "a.jpg"), SIDE).shape == (SIDE, SIDE, 3)
    with pytest.raises(Image.DecompressionBombError):
        decode(str(tmp_path / "a.png"), SIDE)


def test_a_thin_line_is_not_scaled_to_billions_of_pixels(tmp_path):
    picture(1, (2, 3000)).save(tmp_path / "a.png")  # 256 x 384,000 after resizing
    with pytest.raises(Image.DecompressionBombError):
        decode(str(tmp_path / "a.png"), 256)
    assert decode(str(tmp_path / "a.png"), 64).shape == (64, 64, 3)


def test_16_bit_grey_palette_and_animated_images_are_converted(tmp_path):
    grey = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE)
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "16.png")
    found = decode(str(tmp_path / "16.png"), SIDE)
    assert np.abs(found - grey[:, :, None] / 257).max() <= 1
    picture(1, (50, 44), "P").save(tmp_path / "p.png")
    np.testing.assert_array_equal(
        decode(str(tmp_path / "p.png"), SIDE).transpose(2, 0, 1), by_torchvision(tmp_path / "p.png")
    )
    frames = [picture(seed, (50, 44), "P") for seed in (1, 2, 3)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "first.gif")
    np.testing.assert_array_equal(
        *(decode(str(tmp_path / f"{n}.gif"), SIDE) for n in ("film", "first"))
    )


def test_photographs_are_decoded_upright_and_transparent_pixels_on_white(tmp_path):
    upright = picture(1, (60, 44)).resize((60, 44))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # a viewer turns it a quarter clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=turned)
    upright.save(tmp_path / "b.png")
    np.testing.assert_array_equal(
        *(decode(str(tmp_path / f"{name}.png"), SIDE) for name in ("a", "b"))
    )
    clear = np.zeros((SIDE, SIDE, 4), np.uint8)  # black, and all transparent
    clear[:, :9] = 200, 100, 50, 255
    Image.fromarray(clear).save(tmp_path / "c.png")
    expected = np.full((SIDE, SIDE, 3), 255)
    expected[:, :9] = 200, 100, 50
    np.testing.assert_array_equal(decode(str(tmp_path / "c.png"), SIDE), expected)


def test_a_decompression_bomb_and_a_deleted_file_are_skipped_and_reported(root, caplog):
    bomb, deleted = sorted((root / "train").rglob("*.png"))[:2]
    content = bytearray(bomb.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)  # width and height in the PNG header
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    bomb.write_bytes(content)
    module = data(root)
    deleted.unlink()
    caplog.clear()
    assert sum(len(labels) for _, labels in module.train_dataloader()) == 19
    (line,) = caplog.messages
    assert "2 of 21 files cannot be decoded" in line and str(bomb) in line and str(deleted) in line


# --- Batches --------------------------------------------------------------------------------------


def collect(batches) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_validation_images_are_in_order_with_the_labels_of_their_folders(root):
    images, labels = collect(data(root).val_dataloader())
    paths = sorted((root / "val").rglob("*.*"))
    assert labels.tolist() == [path.parent.name == "dog" for path in paths]
    middle = np.stack([by_torchvision(path)[:, 4:36, 4:36] for path in paths])
    np.testing.assert_allclose(images.numpy(), middle, atol=1e-4)


def test_training_images_are_crops_of_the_decoded_images(root):
    images, labels = collect(data(root).train_dataloader())
    assert images.shape == (21, 3, 32, 32) and labels.dtype == torch.int64
    windows = {}
    for path in (root / "train").rglob("*.*"):
        whole = by_torchvision(path)
        for top, left in np.ndindex(9, 9):
            window = whole[:, top : top + 32, left : left + 32]
            windows[window.tobytes()] = windows[window[:, :, ::-1].tobytes()] = path
    found = [windows[image.byte().numpy().tobytes()] for image in images]
    assert len(set(found)) == 21
    assert [path.parent.name == "dog" for path in found] == labels.tolist()


def same_batches(one, other) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("free", [10**6, 10**10])  # bytes of shared memory
def test_workers_change_neither_the_batches_nor_the_global_generator(root, monkeypatch, free):
    usage = shutil.disk_usage(root)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    before = torch.get_rng_state()
    loader = data(root, workers=2).train_dataloader()
    assert same_batches(data(root).train_dataloader(), loader)
    assert torch.equal(before, torch.get_rng_state())
    assert list(loader.read([])) == []  # the share of a rank may be empty


def test_the_order_depends_on_seed_and_epoch_only(root):
    def batches(seed: int, epoch: int):
        module = data(root, seed=seed)
        module.trainer = SimpleNamespace(
            overfit_batches=0, distributed_sampler_kwargs=None, current_epoch=epoch, num_devices=1,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )  # fmt: skip
        return collect(module.train_dataloader())[0]

    assert torch.equal(batches(1, 2), batches(1, 2))
    different = [batches(seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert len({images.numpy().tobytes() for images in different}) == 4


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader"])
def test_ranks_share_the_images(root, loader):
    module = data(root)
    whole = collect(getattr(module, loader)())[0]
    parts = []
    for rank in range(3):
        module.trainer = SimpleNamespace(
            overfit_batches=0, current_epoch=0,
            distributed_sampler_kwargs={"rank": rank, "num_replicas": 3},
            num_devices=3, strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )  # fmt: skip
        parts += [image.numpy().tobytes() for image in collect(getattr(module, loader)())[0]]
    assert Counter(parts) == Counter(image.numpy().tobytes() for image in whole)


def test_a_saved_pass_continues_with_the_next_batch(root):
    whole = list(data(root).train_dataloader())
    after = data(root).train_dataloader()
    after.load_state_dict({"passed": 2})
    assert same_batches(after, whole[2:])


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_images_are_skipped_and_reported(root, caplog, workers):
    whole = list(data(root).train_dataloader())
    bad = sorted((root / "train").rglob("*.*"))[3:6]
    for path in bad:
        truncate(path)
    module = data(root, workers=workers)
    caplog.clear()
    loader = module.train_dataloader()
    rest = list(loader)
    (line,) = caplog.messages
    assert "3 of 21 files cannot be decoded" in line and all(str(path) in line for path in bad)
    assert sum(len(labels) for _, labels in rest) == 18
    other = next(path for path in sorted((root / "train").rglob("*.*")) if path not in bad)
    other.unlink()
    assert sum(len(labels) for _, labels in loader) == 17
    again = caplog.messages[1:]  # only what is new
    assert [line.partition(": ")[2] for line in again] == [str(other)] and "4 of 21" in again[0]
    # The other images keep their places.
    for (images, _), (left, labels) in zip(whole, rest, strict=True):
        assert len(left) == len(labels)
        kept = [any(torch.equal(image, other) for other in left) for image in images]
        assert torch.equal(images[torch.tensor(kept)], left)


def test_a_split_without_decodable_images_is_reported_in_one_line(root):
    for path in (root / "val").rglob("*.*"):
        truncate(path, 8)
    with pytest.raises(UserError, match="10 of 10 files cannot be decoded"):
        list(data(root).val_dataloader())


def test_the_mean_image_is_that_of_the_training_images(root):
    module = data(root, input={
        "size": 32, "fit": "crop", "low": 0, "high": 255, "subtract_mean": True
    })  # fmt: skip
    every = np.stack([by_torchvision(path) for path in (root / "train").rglob("*.*")]).astype(float)
    mean = every.mean(0)[:, 4:36, 4:36]
    np.testing.assert_allclose(module.preprocessing.mean.numpy(), mean, atol=1e-3)


@pytest.mark.parametrize("fit, size", [("pad", 48), ("resize", 20)])
def test_images_are_fitted_to_the_input_size(root, fit, size):
    options = {"size": size, "fit": fit, "low": 0, "high": 255, "subtract_mean": False}
    images, _ = collect(data(root, augment="none", input=options).val_dataloader())
    assert images.shape == (10, 3, size, size)
    if fit == "pad":
        first = by_torchvision(min((root / "val").rglob("*.*")))
        np.testing.assert_allclose(images[0, :, 4:44, 4:44].numpy(), first, atol=1e-4)


# --- Files and folders ----------------------------------------------------------------------------


def test_without_test_images_the_validation_images_are_tested(root):
    val, test = (list(folders.files(str(root), split)[0]) for split in ("val", "test"))
    assert val == test and len(val) == 10
    shutil.copytree(root / "train", root / "test")
    assert len(folders.files(str(root), "test")[0]) == 21


def test_a_list_of_files_that_cannot_be_kept_is_made_at_every_start(root, tmp_path, caplog):
    for folder in (root, *root.glob("*"), *root.glob("*/*")):
        os.utime(folder, (1e9, 1e9))  # a list made within a second of a change is not kept anyway
    (tmp_path / "file").touch()
    found = folders.index(str(root), tmp_path / "file" / "index.npz")
    assert len(found["train"][0]) == 21 and "are listed at every start" in caplog.text


def test_the_facts_have_the_folder_the_counts_and_a_checksum_of_the_names(root):
    facts = data(root).facts()
    assert facts["root"] == str(root) and facts["files"] == {"train": 21, "val": 10, "test": 10}
    splits = [folders.files(str(root), split)[0] for split in ("train", "val", "test")]
    lines = [str(Path(path).relative_to(root)) for paths in splits for path in paths]
    # A resumed run compares it with that of its first start.
    before = sha256("\n".join(lines).encode()).hexdigest()
    assert facts["names_sha256"] == before
    path = min((root / "val").rglob("*.*"))
    path.rename(path.with_name("other.jpg"))
    assert data(root).facts()["names_sha256"] != before


def test_hidden_files_are_ignored_and_subfolders_are_read(root):
    (root / "train" / ".cache").mkdir()
    (root / "train" / "cat" / ".DS_Store").write_text("x")
    hidden, below = root / "train" / "cat" / ".old", root / "train" / "cat" / "more"
    hidden.mkdir()
    picture(1, (50, 50)).save(hidden / "a.png")
    below.mkdir()
    picture(1, (50, 50)).save(below / "a.png")
    paths, labels = folders.files(str(root), "train")
    assert str(below / "a.png") in paths and len(paths) == 22
    assert folders.classes(str(root)) == ["cat", "dog"] and set(labels) == {0, 1}


def test_links_are_followed_but_not_in_circles(root, tmp_path):
    before = len(folders.files(str(root), "train")[0])
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "more").mkdir(parents=True)
    picture(1, (20, 30)).save(elsewhere / "more" / "linked.png")
    (elsewhere / "back").symlink_to(elsewhere)
    name = folders.classes(str(root))[0]
    (root / "train" / name / "a").symlink_to(elsewhere)
    (root / "train" / name / "b").symlink_to(root / "train" / name)
    paths = list(folders.files(str(root), "train")[0])
    assert len(paths) == before + 1
    assert str(root / "train" / name / "a" / "more" / "linked.png") in paths
    assert folders.pictures_in([str(elsewhere)]) == [str(elsewhere / "more" / "linked.png")]


def test_an_unreadable_folder_is_an_error_and_not_an_empty_class(root, monkeypatch):
    scandir, unreadable = os.scandir, root / "train" / "cat"

    def refuse(path):  # chmod has no effect for root
        if Path(path) == unreadable:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"^data.root={root}: Permission denied: {unreadable}"):
        folders.files(str(root), "train")


def test_a_class_may_have_no_validation_images(root):
    shutil.rmtree(root / "val" / "dog")
    assert set(folders.files(str(root), "val")[1]) == {0}


def one_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "cat")
    shutil.rmtree(root / "val" / "cat")


MISTAKES = {
    "has no train/": lambda root: shutil.rmtree(root / "train"),
    "has no val/": lambda root: shutil.rmtree(root / "val"),
    "1 class folder ": one_class,
    "val/ has the class cow that train/ lacks": lambda root: (root / "val" / "cow").mkdir(),
    "train/cow has no images": lambda root: (root / "train" / "cow").mkdir(),
    "val/ has no images": lambda root: [p.unlink() for p in (root / "val").rglob("*.*")],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_in_folders_are_reported_in_one_line(root, line):
    MISTAKES[line](root)
    with pytest.raises(UserError, match=f"^data.root={root}: .*{line}"):
        data(root, num_classes=2 + (root / "train" / "cow").exists())


def test_pictures_of_folders_have_one_channel_or_three(root):
    with pytest.raises(UserError, match="^data.channels=2: must be one of 1, 3; try data.channels"):
        compose("model=lenet5_relu", "data=image_folder", f"data.root={root}", "data.channels=2")


def test_the_proposals_lead_to_lenet5_on_grey_folders(root):
    words = ["model=lenet5", "data=image_folder", f"data.root={root}", "data.channels=3"]
    for expected in ("data.channels=1", "data.size=28", "data.augment=none"):
        with pytest.raises(UserError) as refusal:
            compose(*words)
        (proposal,) = re.findall(r"try (\S+?)(?:,| or|$)", str(refusal.value))
        assert proposal == expected
        key = proposal.partition("=")[0]
        words = [word for word in words if not word.startswith(f"{key}=")] + [proposal]
    config = compose(*words)
    assert config.data.channels == 1
    with pytest.raises(UserError, match="gives 10 scores .* 2 classes; try another model$"):
        build(config)  # its output units are bitmaps of the ten digits


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_grey_folders_are_read_as_the_pictures_of_predict(root, store):
    options = {"channels": 1, "size": 48, "augment": "none", "store": store, "jpeg_quality": 100}
    direct = data(root, **options)
    stored = data(root, prepare=True, **options)
    images, labels = next(iter(direct.val_dataloader()))
    again, same = next(iter(stored.val_dataloader()))
    assert images.shape == (4, 1, 32, 32) and torch.equal(labels, same)
    torch.testing.assert_close(again, images, rtol=0, atol=0 if store == "raw" else 4)
    paths = sorted((root / "val").rglob("*.*"))[:4]
    for image, path in zip(images, paths, strict=True):
        (expected,), _ = direct.preprocessing.read(str(path))
        np.testing.assert_array_equal(image[0].numpy(), expected[8:40, 8:40])


def test_folders_without_classes_are_reported_in_one_line(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    with pytest.raises(UserError, match="train/ has no class folders and at least two are needed"):
        folders.classes(str(tmp_path))


def test_a_run_is_not_resumed_with_other_classes(root):
    with pytest.raises(UserError, match="has 2 classes and this run was started with 3"):
        data(root, num_classes=3)


def test_the_thousand_classes_of_imagenet_have_names():
    folders = [f"n{number:08}" for number in range(1000)]
    names = imagenet_names(folders)
    assert (names[0], names[1], names[999]) == ("tench", "goldfish", "toilet tissue")
    for others in (folders[1:], [*folders[1:], "other"]):
        assert imagenet_names(others) == others


# --- Whole runs -----------------------------------------------------------------------------------


@pytest.fixture
def train(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def train(name: str, *overrides: str, root: str | Path = root) -> Path:
        if overrides:  # resume=
            run(compose(*overrides))
            return tmp_path / name
        words = [
            "model=alexnet", "data=image_folder", f"data.root={root}", "name=alexnet-folder",
            "model.net.channels=[8,8,8,8,8]", "model.net.hidden=16", "model.precision=32-true",
            "trainer.accelerator=cpu", "trainer.max_epochs=2", "data.batch_size=8",
            "data.workers=1", "trainer.log_every_n_steps=2", f"run_dir={tmp_path / name}",
        ]  # fmt: skip
        run(compose(*words))
        return tmp_path / name

    return train


@pytest.mark.slow  # whole runs with processes
def test_a_run_reports_a_damaged_file_and_is_resumed_with_equal_weights(train, root, monkeypatch):
    bad = sorted((root / "train").rglob("*.*"))[0]
    truncate(bad)
    (root / "train" / "notes.txt").write_text("no class")
    (root / "train" / bad.parent.name / "notes.txt").write_text("no image")
    whole = train("whole")
    result = json.loads((whole / "result.json").read_text())
    assert result["status"] == "finished" and 0 <= result["metrics"]["error/test"] <= 1
    text = (whole / "train.log").read_text()
    assert "10 for validation, which are also the test set, since there is no test/" in text
    # Found before the run has a directory.
    assert text.count("1 of 22 files do not have the extension of an image") == 1
    # Once, although the mean image and two epochs read it.
    assert text.count(f"1 of 21 files cannot be decoded and were left out: {bad}") == 1
    (start,) = json.loads((whole / "provenance.json").read_text())
    assert start["data"]["files"]["train"] == 21

    def weights(directory: Path) -> dict:
        path = directory / "checkpoints" / "last.ckpt"
        return torch.load(path, weights_only=True)["state_dict"]

    step = Classifier.training_step

    def failing(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (1, 0):
            raise RuntimeError("power failure")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", failing)
        with pytest.raises(RuntimeError):
            train("broken")
    train("unused", "resume=broken")
    undisturbed = weights(whole)
    assert all(
        torch.equal(undisturbed[key], value) for key, value in weights(Path("broken")).items()
    )


def test_files_without_an_image_extension_are_left_out_in_one_line(root, caplog):
    splits = ("train", "val", "test")
    expected = [list(folders.files(str(root), split)[0]) for split in splits]
    wrong = root / "train" / "cat" / "notes.txt"
    wrong.write_text("cats")
    (root / "val" / "dog" / "Thumbs.db").write_bytes(b"dogs")
    found = [list(folders.files(str(root), split)[0]) for split in splits]
    assert found == expected and len(caplog.messages) == 2  # val/ is the test set too
    line = f"{root}/train: 1 of 22 files do not have the extension of an image and are left out: "
    assert caplog.messages[0] == line + str(wrong)
    assert "Thumbs.db" in caplog.messages[1]


@pytest.mark.slow  # whole runs with processes
def test_a_run_is_evaluated_with_overrides_and_after_its_folder_was_moved(train, root):
    directory = train("whole")
    expected = evaluate(*Composer().load_run(directory), "test").metrics
    assert expected == {
        name: value
        for name, value in json.loads((directory / "result.json").read_text())["metrics"].items()
        if "/test" in name
    }
    ten = evaluate(*Composer().load_run(directory, ["data.test_patches=ten"]), "test").metrics
    assert ten["error/test_centre"] == expected["error/test"]
    moved = root.rename(root.with_name("moved"))
    words = [f"data.root={moved}", "trainer.devices=1"]
    assert evaluate(*Composer().load_run(directory, words), "test").metrics == expected


@pytest.mark.slow  # whole runs with processes
def test_a_run_is_resumed_after_its_folder_was_moved(train, root):
    shutil.copytree(train("a"), "b")
    train("a", "resume=a", "trainer.max_epochs=3")
    moved, cache = root.rename(root.with_name("moved")), root.with_name("cache")
    words = [f"data.root={moved}", f"data_dir={cache}"]
    train("b", "resume=b", "trainer.max_epochs=3", *words)
    a, b = (
        torch.load(Path(run) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in "ab"
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (cache / "folders").is_dir()
    assert json.loads(Path("b/provenance.json").read_text())[1]["data"]["root"] == str(moved)
    with pytest.raises(UserError, match=f"^data.root={root}: there is no such folder"):
        train("b", "resume=b", "trainer.max_epochs=4", f"data.root={root}")


@pytest.mark.slow  # whole runs with processes
def test_a_run_of_a_relative_folder_is_evaluated_from_elsewhere(train, root, tmp_path, monkeypatch):
    monkeypatch.chdir(root.parent)
    directory = train("run", root=root.name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = evaluate(*Composer().load_run(directory), "test").metrics
    known = json.loads((directory / "result.json").read_text())["metrics"]
    assert found["error/test"] == known["error/test"]


@pytest.mark.slow  # whole runs with processes
def test_a_folder_that_has_changed_since_the_run_is_reported(train, root, caplog):
    directory = train("whole")
    mean = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["preprocessing"]
    picture(77, (50, 44)).save(root / "train" / "cat" / "new.png")
    train("whole", f"resume={directory}", "trainer.max_epochs=3")
    assert "the data have changed since this run was started" in caplog.text
    later = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["preprocessing"]
    assert torch.equal(mean["mean"], later["mean"])
    for split in ("train", "val"):  # the numbers of the classes change
        (root / split / "dog").rename(root / split / "aardvark")
    line = "data: its classes are aardvark, cat, and the run was trained with cat, dog; restore"
    with pytest.raises(UserError, match=line):
        train("whole", f"resume={directory}", "trainer.max_epochs=4")
    checkpoint, config = Composer().load_run(directory)
    with pytest.raises(UserError, match=line):
        evaluate(checkpoint, config, "test")
    net = load_net(checkpoint, config)
    with pytest.raises(UserError, match=line):  # also for figures and exported files
        data_of(config, net)
    assert net.classes == ["cat", "dog"]


@pytest.mark.slow
def test_names_that_are_no_text_are_escaped_in_one_line(train, root, tmp_path, capsys):
    for split in ("train", "val"):
        os.rename(root / split / "dog", os.fsencode(root / split) + b"/d\xffg\n")
    bad = sorted((root / "train").rglob("*.*"))[-1]
    truncate(bad)
    run = train("odd")
    lines = [line for line in (run / "train.log").read_text().splitlines() if "decoded" in line]
    assert lines and all(line.endswith(f"/train/d\\udcffg\\n/{bad.name}") for line in lines)
    confusion = events(run).Tensors("confusion/test/text_summary")[-1]
    assert "d\\udcffg\\n" in confusion.tensor_proto.string_val[0].decode()
    paths = [str(path) for path in sorted((root / "val").rglob("*.*"))]
    assert predict(*Composer().load_run(run), [*paths, str(bad)], False) == 1
    found = capsys.readouterr()
    (error,) = found.err.splitlines()[-1:]
    assert error.startswith("error: ") and "/d\\udcffg\\n/" in error
    assert [line.split("  ")[0] for line in found.out.splitlines()[-10:]] == [
        path.replace("\udcff", "\\udcff").replace("\n", "\\n") for path in paths
    ]

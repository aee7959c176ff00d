"""Use of a trained net, compared with counting by hand and with the result of its run."""

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf
from PIL import Image, ImageDraw
from torchvision import datasets

import classic_cnns
from classic_cnns import UserError, compose, train
from classic_cnns.callbacks.pictures import Pictures
from classic_cnns.classifier import Classifier, other_classes
from classic_cnns.config.compose import Composer
from classic_cnns.config.trust import is_trusted
from classic_cnns.data.fetch import cache_directory
from classic_cnns.data.preprocessing import Preprocessing
from classic_cnns.run.directory import restore_latest
from classic_cnns.run.evaluate import Classes, Evaluation, evaluate
from classic_cnns.run.predict import figure_paths, predict
from classic_cnns.run.trained import data_of
from tests import golden
from tests.forks import SRC, TRAIN

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with tiny data sets and two runs trained on them."""
    folder = tmp_path_factory.mktemp("use")
    golden.make_data(folder)
    crop = "model.input={size: 24, fit: crop, low: 0, high: 255, subtract_mean: true}"
    words = {
        "lenet5": golden.words("lenet5", folder),
        "nine": [*golden.words("convnet_cifar10", folder), crop, "data.test_patches=nine"],
    }
    for name, overrides in words.items():
        overrides += [f"run_dir={folder / name}", "logger=null", "trainer.precision=32-true"]
        train(compose(*overrides, config_dirs=[str(folder / "conf")]))
    return folder


def test_a_part_of_the_data_may_be_larger_than_that_of_the_run(tmp_path):
    (tmp_path / "config.yaml").write_text(
        OmegaConf.to_yaml(compose("data.train_size=1000", "data.val_size=100"))
    )
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    _, config = Composer().load_run(tmp_path, ["data.train_size=2000", "data.val_size=1500"])
    assert (config.data.train_size, config.data.val_size) == (2000, 1500)
    with pytest.raises(UserError, match="data.train_size=70000: must be a whole number 2 to 60000"):
        Composer().load_run(tmp_path, ["data.train_size=70000"])


@pytest.mark.parametrize(
    ("pictures", "line"),
    [([], "no picture was given"), (np.empty((0, 28, 28, 1), np.uint8), "no picture was given"),
     (None, "NoneType: cannot be read: it has to be a path"), (b"a", "bytes: cannot be read"),
     (np.zeros((28, 28)), "pixels have to be uint8")],
)  # fmt: skip
def test_what_is_no_picture_is_reported_in_python_too(folder, pictures, line):
    with pytest.raises(UserError, match=line):
        classic_cnns.load(folder / "lenet5").predict(pictures)


def result(run: Path) -> dict[str, float]:
    return json.loads((run / "result.json").read_text())["metrics"]


def arrays(folder: Path, run: str) -> tuple[np.ndarray, np.ndarray]:
    """Test images (N, H, W) or (N, H, W, C) and labels, from the files that `make_data` wrote."""
    cache = folder / {"lenet5": "mnist", "nine": "cifar10"}[run]
    images = np.load(cache / "test_images.npy")
    return images.transpose(0, 2, 3, 1) if images.ndim == 4 else images, np.load(
        cache / "test_labels.npy"
    )


# --- From Python ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet5", "nine"])
def test_a_checkpoint_file_alone_gives_the_answers_of_its_run(folder, name, tmp_path):
    shutil.copy(folder / name / "checkpoints" / "best.ckpt", tmp_path / "mine.ckpt")
    images, labels = arrays(folder, name)
    for net in (
        classic_cnns.load(tmp_path / "mine.ckpt"),
        Classifier.load_from_checkpoint(tmp_path / "mine.ckpt"),
    ):
        assert not net.training and isinstance(net, torch.nn.Module)
        wrong = sum(
            answer != net.classes[label]
            for answer, label in zip(net.predict(list(images)), labels, strict=True)
        )
        assert wrong / len(labels) == result(folder / name)["error/test"]
    assert net.hparams.optim["lr"] == json.loads(json.dumps(net.hparams.optim))["lr"]
    with pytest.raises(UserError, match="other.ckpt: is not there"):
        Classifier.load_from_checkpoint(tmp_path / "other.ckpt")


def test_a_checkpoint_has_the_mean_of_the_training_images(folder):
    stored = torch.load(folder / "nine" / "checkpoints" / "last.ckpt", weights_only=True)
    indices = np.random.RandomState(1998).permutation(golden.TRAIN + golden.VAL)[golden.VAL :]
    images = np.load(folder / "cifar10" / "train_images.npy")[indices]
    expected = images.mean(0)[:, 4:28, 4:28]
    mean = stored["preprocessing"].pop("mean")
    np.testing.assert_allclose(mean.numpy(), expected, atol=1e-3)
    names = OmegaConf.load(ROOT / "conf" / "data" / "cifar10.yaml").class_names
    assert stored["preprocessing"] == {
        "low": 0, "high": 255, "size": 24, "fit": "crop", "channels": 3, "image_size": 32,
        "classes": list(names), "test_patches": "nine",
    }  # fmt: skip


def test_a_net_in_another_precision_predicts_too(folder):
    net = classic_cnns.load(folder / "lenet5")
    picture = np.zeros((28, 28), np.uint8)
    picture[5:20, 14] = 255
    expected = net.probabilities(picture)
    for convert, near in ((net.double, 1e-5), (net.bfloat16, 0.2)):
        torch.testing.assert_close(convert().probabilities(picture), expected, atol=near, rtol=0)
    assert net.num_classes == 10 and "top5_error" not in net.test_metrics.means


def test_only_trusted_modules_are_imported_beside_a_run(folder, tmp_path):
    """torch and torchvision try to import packages that may not be installed, like accimage."""
    run = tmp_path / "run"
    shutil.copytree(folder / "lenet5", run)
    (run / "accimage.py").write_text("open('executed', 'w')")
    (run / "mine.py").write_text("import beside")
    (run / "beside.py").write_text("")
    config = OmegaConf.load(run / "config.yaml")
    config.config_dirs = [str(run)]
    OmegaConf.save(config, run / "config.yaml")
    script = """if True:
        import sys
        import classic_cnns
        assert classic_cnns.load('.', trust=['other']).classes
        import importlib.util
        assert not importlib.util.find_spec('accimage') and not importlib.util.find_spec('mine')
        classic_cnns.load('.', trust=['mine'])
        import mine
    """
    env = os.environ | {"PYTHONPATH": str(SRC), "PYTHONSAFEPATH": "1"}
    (tmp_path / "script.py").write_text(script)
    subprocess.run([sys.executable, tmp_path / "script.py"], cwd=run, env=env, check=True)
    assert not (run / "executed").exists()


def test_a_store_of_a_stranger_is_no_path(tmp_path):
    words = ["model=alexnet", "data=image_folder", f"data.root={tmp_path}", "data.num_classes=2"]
    for split in ("train/a", "train/b", "val/a"):
        (tmp_path / split).mkdir(parents=True)
    config = compose(*words)
    OmegaConf.set_readonly(config, False)
    config.data.store = "../../x"
    with pytest.raises(UserError, match="data.store: must be raw or jpeg"):
        classic_cnns.build(config)


def test_classes_are_known_by_their_modules_too():
    for name in ("torch.nn.modules.loss.CrossEntropyLoss", "torch.optim.sgd.SGD",
                 "lightning.pytorch.loggers.csv_logs.CSVLogger"):  # fmt: skip
        assert is_trusted(name)
    for name in ("torch.nn.modules.module.OrderedDict", "torch.nn.modules.transformer.Transformer",
                 "lightning.pytorch.callbacks.lambda_function.Callable"):  # fmt: skip
        assert not is_trusted(name)


def test_latest_means_the_newest_run_in_every_path(folder, tmp_path):
    (tmp_path / "latest.txt").write_text("lenet5\n")
    shutil.copytree(folder / "lenet5", tmp_path / "lenet5")
    state = classic_cnns.load(folder / "lenet5").state_dict()
    for name in ("latest", "latest/checkpoints/best.ckpt"):
        found = classic_cnns.load(tmp_path / name).state_dict()
        assert all(torch.equal(found[key], x) for key, x in state.items())
    (tmp_path / "latest.txt").rename(tmp_path / "latest")  # as in version 0.1
    assert classic_cnns.load(tmp_path / "latest").classes == [str(n) for n in range(10)]
    (tmp_path / "latest").write_text("../lenet5")
    with pytest.raises(UserError, match="does not name a run next to it"):
        classic_cnns.load(tmp_path / "latest")


def test_a_note_that_names_no_run_is_reported(tmp_path):
    (tmp_path / "latest.txt").write_text("\n")
    with pytest.raises(UserError, match="latest.txt: does not name a run next to it"):
        classic_cnns.load(tmp_path / "latest")


def test_if_the_latest_run_was_deleted_the_one_before_is_proposed(tmp_path):
    newest = "2026-01-03_00-00-00"
    for name in ("2026-01-01_00-00-00", "2026-01-02_00-00-00", newest, "renamed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "latest.txt").write_text(f"{newest}\n")
    shutil.rmtree(tmp_path / newest)
    with pytest.raises(UserError, match=f"; try {tmp_path}/2026-01-02_00-00-00$"):
        classic_cnns.load(tmp_path / "latest")
    restore_latest(tmp_path / newest)
    assert (tmp_path / "latest.txt").read_text() == "2026-01-02_00-00-00\n"


def test_a_run_of_version_0_1_is_loaded_too(folder, tmp_path):
    shutil.copytree(ROOT / "tests" / "fixtures" / "run_0_1", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("DATA_DIR", str(folder)))
    net = classic_cnns.load(tmp_path / "run")
    images = np.load(folder / "cifar10" / "train_images.npy")
    indices = np.random.RandomState(1998).permutation(golden.TRAIN + golden.VAL)[golden.VAL :]
    expected = images[indices].mean(0) * 4 / 255 - 2
    np.testing.assert_allclose(net.prepared.mean.numpy(), expected, atol=1e-3)
    assert net.predict(torch.from_numpy(images[0]))[0] in net.classes


@pytest.mark.parametrize("name", ["lenet5", "nine"])
def test_lightnings_trainer_predicts_the_scores_of_the_test_images(folder, name):
    net = classic_cnns.load(folder / name)
    data = data_of(Composer().load_run(folder / name)[1], net)
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    scores, (_, labels) = torch.cat(trainer.predict(net, data)), arrays(folder, name)
    of_run = json.loads((folder / name / "result.json").read_text())["metrics"]
    assert (scores.argmax(1).numpy() != labels).mean() == of_run["error/test"]
    loss = instantiate(Composer().load_run(folder / name)[1].model.loss)
    expected = pytest.approx(of_run["loss/test"], rel=1e-5)
    assert loss(scores, torch.from_numpy(labels).long()).item() == expected


def test_a_net_predicts_after_the_users_own_training_too(folder):
    words = [*golden.words("convnet_cifar10", folder), "trainer.precision=32-true"]
    words += ["model=alexnet_small", "model.net.hidden=16"]  # with dropout, which must be off
    config = compose(*words, config_dirs=str(folder / "conf"))
    module, data = classic_cnns.build(config)
    pictures = list(arrays(folder, "nine")[0][:20])
    with pytest.raises(UserError, match="it is not trained"):
        module.predict(pictures)
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(max_epochs=1, accelerator="cpu", **silent).fit(module, data)
    found = module.probabilities(pictures)
    assert module.training and module.predict(pictures) == [
        module.classes[number] for number in found.argmax(1)
    ]
    expected = module.eval()(data.preprocessing(torch.from_numpy(np.stack(pictures)).movedim(3, 1)))
    torch.testing.assert_close(found, expected.softmax(1))
    words += ["trainer.log_every_n_steps=1", "estimate=true"]
    assert train(compose(*words, config_dirs=str(folder / "conf"))) == {"status": "estimated"}


def test_a_trusted_package_may_be_given_as_a_string():
    composer = Composer(trusted="my_package")
    assert is_trusted("my_package.Net", composer.trusted)
    assert not is_trusted("my.Net", composer.trusted)


@pytest.mark.parametrize("name", ["lenet5", "nine"])
def test_a_batch_of_pictures_is_a_list_of_them(folder, name):
    net, (images, _) = classic_cnns.load(folder / name), arrays(folder, name)
    some = images[:5].reshape(5, *images.shape[1:3], -1)  # (N, H, W, C)
    expected = net.probabilities(list(some))
    assert torch.equal(net.probabilities(some), expected)
    assert torch.equal(net.probabilities(torch.from_numpy(some).permute(0, 3, 1, 2)), expected)
    if name == "lenet5":  # grey images are also (N, H, W)
        assert torch.equal(net.probabilities(images[:5]), expected)


# --- Pictures -------------------------------------------------------------------------------------


def digit(size: tuple[int, int] = (28, 28)) -> Image.Image:
    """A bright seven on a dark background."""
    image = Image.new("L", size)
    x, y = (side / 28 for side in size)
    line = [(8 * x, 7 * y), (19 * x, 7 * y), (12 * x, 22 * y)]
    ImageDraw.Draw(image).line(line, fill=255, width=round(3 * x))
    return image


def rotated(image: Image.Image, path: Path) -> Path:
    """Save an image as a rotated camera does, with its orientation in EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return path


def transparent(image: Image.Image) -> Image.Image:
    """Black ink on a transparent background."""
    picture = Image.new("RGBA", image.size, (0, 0, 0, 0))
    picture.putalpha(image)
    return picture


KINDS = {
    "path": lambda i, place: (i.save(place / "a.png"), place / "a.png")[1],
    "text": lambda i, place: (i.save(place / "a.bmp"), str(place / "a.bmp"))[1],
    "array": lambda i, place: np.asarray(i),
    "tensor": lambda i, place: torch.from_numpy(np.array(i))[None],
    "colour array": lambda i, place: np.asarray(i.convert("RGB")),
    "palette": lambda i, place: i.convert("P"),
    "16 bits": lambda i, place: Image.fromarray(np.asarray(i).astype(np.uint16) * 257),
    "32 bits": lambda i, place: Image.fromarray(np.asarray(i).astype(np.int32) * 257),
    "float": lambda i, place: Image.fromarray(np.asarray(i).astype(np.float32) / 255),
    "cmyk": lambda i, place: i.convert("RGB").convert("CMYK"),
    "turned": lambda i, place: rotated(i, place / "turned.png"),
    "dark on light": lambda i, place: Image.eval(i, lambda value: 255 - value),
    "transparent": lambda i, place: transparent(i),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_in_any_format_gives_the_same_input(folder, kind, tmp_path):
    net = classic_cnns.load(folder / "lenet5")
    expected = np.full((1, 1, 32, 32), -0.1, np.float32)
    expected[0, 0, 2:30, 2:30] = np.asarray(digit()) / 255 * 1.275 - 0.1
    found = net.preprocess(KINDS[kind](digit(), tmp_path)).numpy()
    np.testing.assert_allclose(found, expected, atol=0.006)  # one of 255 steps


def test_a_large_or_wide_image_is_scaled_without_distortion(folder):
    net = classic_cnns.load(folder / "lenet5")
    net.preprocessing.classes[0] = "coat"  # not a data set of digits
    (small,) = net.preprocess(digit())[:, 0].numpy()
    (large,) = net.preprocess(digit((280, 280)))[:, 0].numpy()
    assert np.abs(small - large).mean() < 0.05
    wide = Image.new("L", (560, 280))
    wide.paste(digit((280, 280)), (140, 0))
    rows, columns = np.nonzero(net.preprocess(wide)[0, 0].numpy() > 0.5)
    assert 6 <= np.ptp(rows) <= 9 and 4 <= np.ptp(columns) <= 7  # half of 15 and of 11


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_digit_on_a_page_is_fitted_and_centred_as_in_mnist(folder, kind, tmp_path):
    """The ink fits into 20 x 20 pixels, and its centre of mass is the centre of 28 x 28."""
    prepared = classic_cnns.load(folder / "lenet5").prepared
    for line, width in (([(310, 40), (390, 40), (330, 180)], 9), ([(20, 300), (350, 290)], 30)):
        page = Image.new("L", (500, 320), 235)
        ImageDraw.Draw(page).line(line, fill=30, width=width, joint="curve")
        page.save(tmp_path / f"page.{kind}")
        (found,), changes = prepared.read(tmp_path / f"page.{kind}")
        assert changes == {"inverted": True, "centred": True} and found.max() == 255
        spans = [np.ptp(np.nonzero(found.any(axis))[0]) + 1 for axis in (1, 0)]
        assert max(spans) == 20
        ink = 235 - np.asarray(page)
        sides = [np.ptp(np.nonzero(ink.any(axis))[0]) + 1 for axis in (1, 0)]
        assert spans == [round(20 * side / max(sides)) for side in sides]
        if width == 9:  # the page beside the ink, below the corner at the right, has no ink
            rows, columns = np.nonzero(found)
            assert found[rows.max(), columns.max()] == 0
        total = centre_row = centre_column = 0.0
        for row in range(28):
            for column in range(28):
                total += found[row, column]
                centre_row += row * float(found[row, column])
                centre_column += column * float(found[row, column])
        # A very asymmetric drawing would extend over the edge.
        assert abs(centre_row / total - 14) <= 0.51 and abs(centre_column / total - 14) <= 0.51


def test_ink_whose_centre_of_mass_is_at_its_edge_stays_within_the_image(folder):
    prepared = classic_cnns.load(folder / "lenet5").prepared
    page = np.full((200, 200), 235, np.uint8)
    page[20:60, 20:60], page[40, 60:180], page[60:180, 40] = 30, 30, 30
    (found,), changes = prepared.read(page)
    (whole,), _ = prepared.read(page[::-1, ::-1])
    assert changes["centred"] and np.array_equal(found, whole[::-1, ::-1])
    for axis in (0, 1):
        (inked,) = np.nonzero(found.any(axis))
        assert (inked.min(), inked.max()) == (8, 27)


def test_faint_marks_on_a_page_are_no_ink(folder):
    prepared = classic_cnns.load(folder / "lenet5").prepared
    page = Image.new("L", (200, 200), 235)
    ImageDraw.Draw(page).line([(60, 40), (120, 60), (80, 150)], fill=35, width=12)
    marked = page.copy()
    ImageDraw.Draw(marked).line([(5, 190), (20, 195)], fill=190, width=3)  # 45 of 200
    assert np.array_equal(prepared.read(page)[0], prepared.read(marked)[0])


def test_a_page_without_ink_and_images_of_the_right_size_are_not_changed(folder):
    prepared = classic_cnns.load(folder / "lenet5").prepared
    found, changes = prepared.read(Image.new("L", (100, 80), 200))
    assert changes == {"inverted": True, "centred": False} and np.ptp(found[0, 4:-4]) == 0
    shifted = np.roll(np.asarray(digit()), 5, axis=1)
    found, changes = prepared.read(shifted)
    assert changes == {"inverted": False, "centred": False} and np.array_equal(found[0], shifted)


@pytest.mark.slow
def test_lenet5_learns_mnist_in_one_epoch_and_recognizes_digits_on_pages(fork, tmp_path):
    words = ["model=lenet5", "data=mnist", "trainer.max_epochs=1"]
    process = fork(TRAIN, *words, cwd=tmp_path)
    printed, errors = process.communicate()
    assert process.returncode == 0, printed + errors
    runs = tmp_path / "outputs" / "lenet5-mnist"
    directory = runs / (runs / "latest.txt").read_text().strip()
    assert result(directory)["error/test"] < 0.04  # a full run ends below 0.01
    assert str(directory.relative_to(tmp_path)) in printed

    net = classic_cnns.load(directory)
    cache = cache_directory(None) / "mnist"
    images, labels = (np.load(cache / f"test_{name}.npy")[:1000] for name in ("images", "labels"))
    random = np.random.RandomState(0)

    def on_a_page(image: np.ndarray) -> Image.Image:
        page, side = Image.new("L", (500, 460), "white"), random.randint(80, 450)
        left, top = random.randint(0, 500 - side), random.randint(0, 460 - side)
        page.paste(Image.fromarray(255 - image).resize((side, side)), (left, top))
        return page

    def errors(pictures: list) -> float:
        wrong = [int(a) != b for a, b in zip(net.predict(pictures), labels, strict=True)]
        return sum(wrong) / len(wrong)

    assert errors(list(images)) < 0.04
    assert errors([on_a_page(image) for image in images]) <= errors(list(images)) + 0.01


def test_colour_images_are_resized_and_cropped_as_by_torchvision(folder):
    from torchvision.transforms import functional as vision

    net = classic_cnns.load(folder / "nine")
    pixels = np.random.RandomState(1).randint(256, size=(40, 70, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    expected = np.asarray(vision.center_crop(vision.resize(image, 32), [32, 32])).astype(float)
    found = net.preprocess(image)  # (1, 9, 3, 24, 24)
    centre = expected[4:28, 4:28].transpose(2, 0, 1) - net.prepared.mean.numpy()
    np.testing.assert_allclose(found[0, 4].numpy(), centre, atol=1e-3)


# --- evaluate.py ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet5", "nine"])
def test_evaluate_gives_exactly_the_metrics_of_the_run(folder, name):
    for split in ("test", "val"):
        found = evaluate(*Composer().load_run(folder / name), split)
        expected = {k: x for k, x in result(folder / name).items() if f"/{split}" in k}
        # Then there are metrics of the mean over patches, and of the central patch alone.
        both = split == "test" and name == "nine"
        assert found.metrics == expected and len(expected) == 3 * (1 + both)


@pytest.mark.parametrize("prepare", ["true", "false"])
def test_digits_in_folders_give_the_metrics_of_the_same_digits(folder, tmp_path, prepare):
    images, labels = arrays(folder, "lenet5")
    images = np.pad(images[:, 2:26, 2:26], ((0, 0), (2, 2), (2, 2)))  # on a dark ground
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        for split in ("train", "val"):
            path = tmp_path / "digits" / split / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    words = ["data=image_folder", f"data.root={tmp_path / 'digits'}", f"data.prepare={prepare}"]
    words += [f"data_dir={tmp_path}", "data.workers=0"]
    found = evaluate(*Composer().load_run(folder / "lenet5", words), "test")
    net = classic_cnns.load(folder / "lenet5")
    inputs = np.pad(images, ((0, 0), (2, 2), (2, 2))) / 255 * 1.275 - 0.1
    scores = net(torch.from_numpy(inputs[:, None].astype(np.float32))).detach()
    wrong = (scores.argmax(1).numpy() != labels).mean()
    loss = net.loss(scores, torch.from_numpy(labels).long()).item()
    expected = {"error/test": wrong, "accuracy/test": 1 - wrong, "loss/test": loss}
    assert found.metrics == pytest.approx(expected, rel=1e-6)


def test_a_test_folder_with_some_of_the_classes_is_enough(folder, tmp_path):
    images, labels = arrays(folder, "lenet5")
    images = np.pad(images[:, 2:26, 2:26], ((0, 0), (2, 2), (2, 2)))
    chosen = [number for number, label in enumerate(labels) if label in (2, 5, 9)]
    for number in chosen:
        path = tmp_path / "digits" / "test" / str(labels[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number]).save(path)
    words = ["data=image_folder", f"data.root={tmp_path / 'digits'}", f"data_dir={tmp_path}"]
    found = evaluate(*Composer().load_run(folder / "lenet5", words), "test")
    net = classic_cnns.load(folder / "lenet5")
    right = np.array(net.predict(list(images[chosen]))).astype(int) == labels[chosen]
    assert found.metrics["accuracy/test"] == pytest.approx(right.mean())
    counts = [row["images"] for row in found.classes.values()]
    assert counts == np.bincount(labels[chosen], minlength=10).tolist()
    with pytest.raises(UserError, match="digits: has no val/; try another folder"):
        evaluate(*Composer().load_run(folder / "lenet5", words), "val")
    (tmp_path / "digits" / "test" / "two").mkdir()
    line = "digits: has the class two, and the run was trained with 0, 1, 2, 3, 4, ...; rename or"
    with pytest.raises(UserError, match=line):
        evaluate(*Composer().load_run(folder / "lenet5", words), "test")
    (tmp_path / "digits" / "test").rename(tmp_path / "digits" / "other")
    with pytest.raises(UserError, match="digits: has no test/; it needs test/<class>/<name>.jpg"):
        evaluate(*Composer().load_run(folder / "lenet5", words), "test")


@pytest.mark.parametrize("names, told", [("0123456789", False), ("abcdefghij", True)])
def test_other_names_of_classes_than_the_nets_are_told(folder, tmp_path, caplog, names, told):
    for path in (tmp_path / split / name for split in ("train", "val") for name in names):
        path.mkdir(parents=True)
        Image.new("L", (28, 28)).save(path / "0.png")
    words = ["data=image_folder", f"data.root={tmp_path}", f"data_dir={tmp_path}", "data.workers=0"]
    evaluate(*Composer().load_run(folder / "lenet5", words), "test")
    line = "data: its classes are a, b, c, d, e, ..., and the run was trained with 0, 1, 2, 3, 4,"
    assert (f"{line} ...; they are compared in this order" in caplog.messages) == told


@pytest.mark.parametrize(
    ("has", "takes", "line"),
    [("ab", "ab", ""), ("abcx", "abcd", "data: after 3 equal ones its classes are x, and the run "
      "was trained with d"), ("ab", "abc", "data: after 2 equal ones its classes are none, and the "
      "run was trained with c")],
)  # fmt: skip
def test_the_first_other_class_is_named(has, takes, line):
    assert other_classes(list(has), list(takes)) == line


@pytest.mark.parametrize("split, other", [("test", "train"), ("val", "test")])
def test_evaluate_reads_only_the_set_that_it_needs(folder, split, other):
    expected = evaluate(*Composer().load_run(folder / "lenet5"), split)
    images = folder / "mnist" / f"{other}_images.npy"
    moved = images.rename(images.with_suffix(".moved"))
    try:
        assert evaluate(*Composer().load_run(folder / "lenet5"), split) == expected
    finally:
        moved.rename(images)


def test_other_devices_leave_the_precision_of_the_run(folder, monkeypatch):
    _, config = Composer().load_run(folder / "lenet5", ["trainer=ddp"])
    assert (config.trainer.precision, config.trainer.devices) == ("32-true", 2)
    (folder / "many").mkdir()
    shutil.copytree(folder / "lenet5" / "checkpoints", folder / "many" / "checkpoints")
    text = (folder / "lenet5" / "config.yaml").read_text()
    (folder / "many" / "config.yaml").write_text(text.replace("devices: 1\n", "devices: 999\n"))
    Composer().load_run(folder / "many")  # to predict, for example
    with pytest.raises(UserError, match="trainer.devices=999: this machine has"):
        Composer().load_run(folder / "many", [])


def test_a_set_that_the_data_lack_is_reported_with_the_other(folder):
    class OnlyTraining(pl.LightningDataModule):
        def train_dataloader(self):
            return [(torch.zeros(1, 1, 32, 32), torch.zeros(1, dtype=torch.long))]

    checkpoint, config = Composer().load_run(folder / "lenet5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "OnlyTraining", OnlyTraining, raising=False)
        config.data = {"_target_": "torchvision.datasets.OnlyTraining", "num_classes": 10}
        with pytest.raises(UserError, match="split=test: .* has no such set; try split=val"):
            evaluate(checkpoint, config, "test")


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_run_without_batches_of_a_set_is_evaluated_with_the_override_of_the_line(
    folder, split, tmp_path
):
    shutil.copytree(folder / "lenet5", tmp_path / "run")
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    config.trainer[f"limit_{split}_batches"] = 0
    OmegaConf.save(config, tmp_path / "run" / "config.yaml")
    with pytest.raises(UserError, match=f"^trainer.limit_{split}_batches=0: leaves") as refusal:
        evaluate(*Composer().load_run(tmp_path / "run", []), split)
    proposal = re.search(r"try (\S+)$", str(refusal.value))[1]
    found = evaluate(*Composer().load_run(tmp_path / "run", [proposal]), split)
    assert found.metrics == evaluate(*Composer().load_run(folder / "lenet5"), split).metrics


def test_a_run_with_lightnings_checkpoints_alone_is_reported_with_the_newest(folder, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copy(folder / "lenet5" / "config.yaml", tmp_path / "run")
    for age, name in enumerate(("epoch=2.ckpt", "epoch=0.ckpt", "epoch=1.ckpt")):
        shutil.copy(folder / "lenet5" / "checkpoints" / "best.ckpt", checkpoints / name)
        os.utime(checkpoints / name, (1e9 - age, 1e9 - age))
    with pytest.raises(
        UserError, match=r"run: has no best.ckpt .* try \S*epoch=2.ckpt$"
    ) as refusal:
        Composer().load_run(tmp_path / "run")
    assert evaluate(*Composer().load_run(str(refusal.value).split()[-1]), "test").metrics
    with pytest.raises(UserError, match="^init_from=") as refusal:
        compose(f"init_from={tmp_path / 'run'}")
    (word,) = shlex.split(str(refusal.value).partition("; try ")[2])
    assert compose(word).init_from == str(checkpoints / "epoch=2.ckpt")


def test_a_users_module_with_an_argument_net_is_none_of_our_nets(folder, tmp_path):
    shutil.copytree(folder / "lenet5", tmp_path / "run")
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    config.model._target_, config.optim = "my_module.LitModule", {}
    OmegaConf.save(config, tmp_path / "run" / "config.yaml")
    with pytest.raises(UserError, match="belongs to another LightningModule; use the load_from_"):
        classic_cnns.load(tmp_path / "run", trust=["my_module"])


def test_precision_and_recall_of_each_class(folder):
    net, (images, labels) = classic_cnns.load(folder / "lenet5"), arrays(folder, "lenet5")
    answers = np.array([int(answer) for answer in net.predict(list(images))])
    found = evaluate(*Composer().load_run(folder / "lenet5"), "test")
    for label in range(10):
        right = ((answers == label) & (labels == label)).sum()
        given, there = (answers == label).sum(), (labels == label).sum()
        assert found.classes[str(label)] == {
            "images": there,
            "precision": right / given if given else None,
            "recall": right / there if there else None,
        }
    assert json.loads(found.json())["metrics"] == found.metrics


def test_an_evaluation_is_shown_as_two_tables():
    classes = {
        "cat": {"images": 1234, "precision": 0.5, "recall": 0.25},
        "dog": {"images": 0, "precision": None, "recall": None},
    }
    metrics = {"loss/test": 0.123456, "error/test": 0.0475}
    shown = Evaluation("best.ckpt", "pets", "test", metrics, classes).table()
    expected = """\
best.ckpt on pets, test

loss/test                   0.1235
error/test                   4.75%

| class | images | precision | recall |
|-------|-------:|----------:|-------:|
| cat   |  1,234 |    50.00% | 25.00% |
| dog   |      0 |         - |      - |"""
    assert shown == expected


def test_tests_of_many_classes_need_little_memory(tmp_path):
    """A confusion matrix of 20,000 classes would take 3 GB."""
    images, labels = torch.randn(64, 4, 1, 1), torch.randint(20_000, (64,))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 20_000))
    module = Classifier(net, torch.nn.CrossEntropyLoss(), torch.optim.SGD, num_classes=20_000)
    drawn, counted = Pictures(), Classes()
    logger = TensorBoardLogger(tmp_path)
    off = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[drawn, counted], logger=logger, **off)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 32)
    trainer.test(module, loader, verbose=False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    answers = net(images).argmax(1)
    assert counted.counts[1] == torch.bincount(answers, minlength=20_000).tolist()
    assert counted.counts[2] == torch.bincount(labels, minlength=20_000).tolist()
    assert len(drawn.mistakes) == (answers != labels).sum()


def test_evaluate_with_other_patches(folder):
    found = evaluate(*Composer().load_run(folder / "nine", ["data.test_patches=centre"]), "test")
    net, (images, labels) = classic_cnns.load(folder / "nine"), arrays(folder, "nine")
    net.preprocessing.test_patches = "centre"
    answers = net.predict(list(images))
    wrong = sum(a != net.classes[label] for a, label in zip(answers, labels, strict=True))
    assert found.metrics["error/test"] == wrong / len(labels)
    of_run = json.loads((folder / "nine" / "result.json").read_text())["metrics"]
    for name, value in found.metrics.items():  # the run also has the metrics of the central patch
        assert of_run[f"{name}_centre"] == value


def test_other_data_are_prepared_with_the_mean_of_the_training_images(folder, tmp_path):
    """The same test set in another data set, whose training images are black."""
    shutil.copytree(folder / "cifar10", tmp_path / "cifar10")
    images = np.load(tmp_path / "cifar10" / "train_images.npy") * 0
    np.save(tmp_path / "cifar10" / "train_images.npy", images)
    from hashlib import sha256

    dark = {"defaults": ["tiny_cifar10"], "sha256": {"train_images": sha256(images).hexdigest()}}
    (folder / "other" / "data").mkdir(parents=True)
    OmegaConf.save(dark, folder / "other" / "data" / "dark.yaml")
    composer = Composer([str(folder / "other"), str(folder / "conf")])
    words = ["data=dark", f"data_dir={tmp_path}", "data.test_patches=nine"]
    words += ["data.eval_batch_size=16"]
    found = evaluate(*composer.load_run(folder / "nine", words), "test")
    expected = result(folder / "nine")
    assert found.metrics == {name: expected[name] for name in found.metrics}


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(fork, folder):
    words = [folder / "lenet5", "--json", "trainer=ddp", "trainer.accelerator=cpu"]
    process = fork(SRC / "evaluate.py", *words, cwd=folder)
    out, err = process.communicate()
    assert process.returncode == 0, err
    found = json.loads(out)["metrics"]
    assert found == {name: result(folder / "lenet5")[name] for name in found}


# --- predict.py -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(folder) -> Path:
    place = folder / "pictures"
    place.mkdir()
    for number, image in enumerate(arrays(folder, "lenet5")[0]):
        Image.fromarray(image).save(place / f"{number:02}.png")
    return place


def test_predict_gives_the_answers_of_the_test(folder, pictures, capsys, monkeypatch):
    monkeypatch.setattr("classic_cnns.run.predict.AT_ONCE", 15)  # the last batch has ten images
    paths = sorted(map(str, pictures.glob("*.png")))
    assert predict(*Composer().load_run(folder / "lenet5"), paths, as_json=True) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == paths
    net = classic_cnns.load(folder / "lenet5")
    for line, shares in zip(lines, net.probabilities(paths), strict=True):
        best = shares.argsort(descending=True)[:5].tolist()
        assert len(line["classes"]) == 5
        assert line["classes"][0]["class"] == net.classes[best[0]]
        given = [row["probability"] for row in line["classes"]]
        np.testing.assert_allclose(given, shares[best].numpy(), rtol=1e-4, atol=1e-7)
    wrong = sum(
        line["classes"][0]["class"] != str(label)
        for line, label in zip(lines, arrays(folder, "lenet5")[1], strict=True)
    )
    assert wrong / len(lines) == result(folder / "lenet5")["error/test"]


def test_unreadable_files_are_reported_at_the_end(folder, pictures, tmp_path, capsys):
    (tmp_path / "cut.png").write_bytes((pictures / "00.png").read_bytes()[:60])
    Image.eval(digit(), lambda value: 255 - value).save(tmp_path / "dark.png")
    digit((90, 70)).save(tmp_path / "page.png")
    paths = [str(tmp_path / name) for name in ("cut.png", "dark.png", "page.png", "none.png")]
    assert predict(*Composer().load_run(folder / "lenet5"), paths, as_json=False) == 1
    out, err = capsys.readouterr()
    dark, page = out.splitlines()
    assert "dark.png" in dark and dark.endswith("  (dark on light: inverted)")
    assert "page.png" in page and page.endswith("  (ink scaled and centred)")
    lines = err.splitlines()
    assert lines[0].startswith(f"error: {tmp_path / 'cut.png'}: cannot be read: ")
    assert lines[1].startswith(f"error: {tmp_path / 'none.png'}: cannot be read: ")
    assert len(lines) == 2


@pytest.mark.slow
def test_a_name_is_printed_even_if_the_terminal_lacks_its_characters(folder, tmp_path):
    digit().save(tmp_path / "Ziffer_\u00fc_\u4e03.png")
    words = [str(folder / "lenet5"), str(tmp_path / "Ziffer_\u00fc_\u4e03.png")]
    done = subprocess.run(
        [sys.executable, ROOT / "src" / "predict.py", *words],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(SRC)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "Ziffer_\\xfc_\\u4e03.png" in done.stdout


def test_explain_draws_a_figure_for_each_readable_image(folder, tmp_path, capsys):
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        digit().save(tmp_path / place / "a.png")
    (tmp_path / "cut.png").touch()
    paths = [str(tmp_path / name) for name in ("one/a.png", "cut.png", "two/a.png")]
    run = Composer().load_run(folder / "lenet5")
    assert predict(*run, paths, True, tmp_path / "new" / "explained") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    drawn = [tmp_path / "new" / "explained" / f"{name}_layers.png" for name in ("a", "a-1")]
    assert [line.get("explained") for line in lines] == [str(drawn[0]), None, str(drawn[1])]
    assert sorted(drawn[0].parent.iterdir()) == sorted(drawn)
    one, two = (np.asarray(Image.open(path)) for path in drawn)
    assert np.array_equal(one, two) and 0.05 < (one[..., :3].mean(2) < 128).mean() < 0.95
    bound = np.nonzero((one[..., :3].mean(2) < 250).any(1))[0]
    assert one.shape[1] == 1100 and np.ptp(bound) > 0.9 * len(one)  # rows from top to bottom
    with pytest.raises(UserError, match="--explain=/dev/null/x: "):
        predict(*run, paths, True, Path("/dev/null/x"))


def test_figures_of_files_with_equal_names_have_different_ones(tmp_path):
    paths = figure_paths(tmp_path, ["a.png", "a-1.png", "b/a.png", "c/a.png"])
    assert len(set(paths)) == 4 and [path.name for path in paths[:2]] == [
        "a_layers.png", "a-1_layers.png",
    ]  # fmt: skip


# --- export.py ------------------------------------------------------------------------------------


def example(suffix: str) -> str:
    """The README's code that loads a file with this suffix."""
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", README, re.S) if f".{suffix}" in c]
    return code


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        pytest.param("onnx", "nine", marks=pytest.mark.slow),
        pytest.param("onnx", "lenet5", marks=pytest.mark.slow),  # pads its pictures
        pytest.param("pt2", "nine", marks=pytest.mark.slow),
        pytest.param("pt2", "lenet5", marks=pytest.mark.slow),
        ("safetensors", "nine"),
    ],
)
def test_an_exported_file_works_without_this_project_and_gives_the_same_answers(
    folder, suffix, name, tmp_path
):
    for package in {"onnx": ["onnxscript", "onnxruntime"], "pt2": []}.get(suffix, [suffix]):
        pytest.importorskip(package)
    from classic_cnns.run.export import export

    checkpoint, config = Composer().load_run(folder / name)
    content = torch.load(checkpoint, weights_only=True)
    state, first = content["state_dict"], {"nine": "net.conv1.weight", "lenet5": "net.C1.weight"}
    # In the layout of a run in bfloat16.
    state[first[name]] = state[first[name]].to(memory_format=torch.channels_last)
    torch.save(content, tmp_path / "net.ckpt")
    line = export(tmp_path / "net.ckpt", config, tmp_path / f"net.{suffix}")
    images, _ = arrays(folder, name)
    net = classic_cnns.load(folder / name)
    planes = images.transpose(0, 3, 1, 2) if images.ndim == 4 else images[:, None]
    np.save(tmp_path / "pictures.npy", planes)
    program = (
        "import sys; import numpy as np; pictures = np.load('pictures.npy')\n"
        + example(suffix)
        + "\nprint(classes)" * (suffix == "onnx")
        + "\nassert 'classic_cnns' not in sys.modules; np.save('found.npy', np.asarray(found))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npy")
    if suffix == "safetensors":
        assert np.array_equal(found, net.net.conv1.weight.detach().numpy())
    else:
        # Not `probabilities`, which takes some images of noise for dark ink on light paper.
        expected = net(net.prepared(torch.from_numpy(planes))).softmax(1).detach()
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert line.startswith(f"{tmp_path}/net.{suffix}: 40 of 40 test images get torch's answer")
    if suffix == "onnx":
        assert json.loads(done.stdout) == net.prepared.classes


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize(
    ("fit", "side"), [("pad", 20), ("crop", 32), ("resize", 20), ("resize", 24), ("resize", 32)]
)
def test_images_of_any_size_are_exported(folder, fit, side, suffix, tmp_path):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    from classic_cnns.run import export

    net = classic_cnns.load(folder / "nine")
    net.preprocessing = Preprocessing(
        **net.prepared.stored() | {"fit": fit, "image_size": side, "test_patches": "centre"}
    )
    module, path = export.Exported(net).eval(), tmp_path / f"net{suffix}"
    shape, random = (50, 3, side, side), torch.Generator().manual_seed(0)
    pictures = torch.randint(256, shape, dtype=torch.uint8, generator=random)
    _, run = (export.onnx if suffix == ".onnx" else export.pt2)(module, pictures[:2])
    told = export.compare(module, run, pictures, "pictures", path)
    assert told.startswith("50 of 50 pictures get torch's answer")


def test_without_its_data_a_net_is_compared_on_random_pictures(folder, tmp_path):
    from classic_cnns.run import export

    checkpoint, config = Composer().load_run(folder / "lenet5")
    config.data.dataset = "gone"
    told = export.export(checkpoint, config, tmp_path / "net.pt2")
    assert "net.pt2: 1,000 of 1,000 random pictures get torch's answer" in told


def test_a_file_with_other_answers_is_not_written(folder, tmp_path, monkeypatch):
    from classic_cnns.run import export

    def wrong(module, pictures):
        return b"content", lambda part: module(part) + 2e-4

    monkeypatch.setattr(export, "pt2", wrong)
    with pytest.raises(UserError, match="differ by 2.0e-04 at most, which is too much"):
        export.export(*Composer().load_run(folder / "lenet5"), tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []

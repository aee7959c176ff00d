"""The data module: the validation split, and the batches made from the files."""

from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from classic_cnns.data import fetch
from classic_cnns.data.resident import ResidentData, split_indices
from classic_cnns.data.transforms import RandomCrop, RandomFlip, RandomShift

MNIST = Path(__file__).parents[2] / "conf" / "data" / "mnist.yaml"
VAL_INDICES = "2792d5e2b793517f511a09979e839e947fa1569bbf551064bd98eb4f00d5ca5b"
INPUT = {"size": 32, "fit": "pad", "low": -0.1, "high": 1.175, "subtract_mean": False}


@pytest.fixture
def data(tiny_mnist, monkeypatch):
    chain = {"tiny": lambda root, folder: tiny_mnist.arrays}
    monkeypatch.setitem(fetch.SOURCES, "mnist", chain)

    def make(**options) -> ResidentData:
        options = {
            "dataset": "mnist", "channels": 1, "size": 28, "num_classes": 10,
            "class_names": None, "train_size": 640, "val_size": 128, "stratify": True,
            "sha256": tiny_mnist.sums,
            "batch_size": 50, "eval_batch_size": 60, "augment": "none",
            "augmentations": {"none": [], "shift": [RandomShift(1)]},
            "input": INPUT, "data_dir": str(tiny_mnist.folder), "seed": 0,
            "test_patches": "centre",
        } | options  # fmt: skip
        module = ResidentData(**options)
        module.prepare_data()
        module.setup("fit")
        return module

    return make


def prepared(images: np.ndarray) -> np.ndarray:
    """Naive input: 28 x 28 bytes in the middle of 32 x 32 of background, -0.1 to 1.175."""
    result = np.full((len(images), 1, 32, 32), -0.1)
    result[:, 0, 2:30, 2:30] = -0.1 + 1.275 * (images / 255)
    return result.astype(np.float32)


def collect(batches) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images).numpy(), torch.cat(labels).numpy()


# --- The split ------------------------------------------------------------------------------------


def test_the_validation_split_of_5000_images_is_always_the_same():
    train, val = split_indices(np.zeros(60000), 60000, 5000, True)
    assert train.dtype == val.dtype == np.int64
    assert len(train) == 55000 and len(val) == 5000
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(60000))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()
    assert sha256(val.astype("<i8").tobytes()).hexdigest() == VAL_INDICES


@pytest.mark.parametrize("train_size", [200, 300, 639])
def test_a_smaller_training_set_has_the_same_share_of_each_class(data, tiny_mnist, train_size):
    labels = tiny_mnist.arrays["train_labels"]
    whole, part = data(), data(train_size=train_size)
    assert np.array_equal(part.val_indices, whole.val_indices)
    assert set(part.train_indices) <= set(whole.train_indices)
    assert len(part.train_indices) == train_size - 128
    share = (train_size - 128) / (640 - 128)
    found, expected = (np.bincount(labels[each.train_indices]) for each in (part, whole))
    assert len(expected) == 10 and (np.abs(found - share * expected) <= 1).all()


def test_a_run_of_an_earlier_version_keeps_its_smaller_training_set(data):
    module = data(train_size=300, stratify=False)
    used = np.concatenate([module.train_indices, module.val_indices])
    assert np.array_equal(np.sort(used), np.arange(300))
    order = np.random.RandomState(1998).permutation(300)
    assert np.array_equal(module.val_indices, np.sort(order[:128]))


def test_the_split_does_not_use_or_change_the_global_seed(data):
    np.random.seed(4)
    before = np.random.get_state()[1].copy()
    one = data(seed=0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(5)
    other = data(seed=1)
    assert np.array_equal(one.val_indices, other.val_indices)
    assert np.array_equal(one.train_indices, other.train_indices)


def test_the_facts_have_the_checksums_and_the_split(data, tiny_mnist):
    module = data()
    _, val = split_indices(tiny_mnist.arrays["train_labels"], 640, 128, True)
    assert module.facts() == {
        "dataset": "mnist",
        "sha256": tiny_mnist.sums,
        "val_size": 128,
        "val_indices_sha256": sha256(val.tobytes()).hexdigest(),
    }


# --- The batches ----------------------------------------------------------------------------------


def test_the_test_set_is_complete_in_order_and_not_augmented(data, tiny_mnist):
    images, labels = collect(data(augment="shift").test_dataloader())
    assert np.array_equal(labels, tiny_mnist.arrays["test_labels"])
    np.testing.assert_allclose(images, prepared(tiny_mnist.arrays["test_images"]), atol=2e-7)


def test_validation_images_are_the_held_out_images_not_augmented(data, tiny_mnist):
    images, labels = collect(data(augment="shift").val_dataloader())
    _, val = split_indices(tiny_mnist.arrays["train_labels"], 640, 128, True)
    assert np.array_equal(labels, tiny_mnist.arrays["train_labels"][val])
    np.testing.assert_allclose(images, prepared(tiny_mnist.arrays["train_images"][val]), atol=2e-7)


def test_training_and_validation_images_together_are_the_training_file(data, tiny_mnist):
    module = data()
    seen = []
    for loader in (module.train_dataloader(), module.val_dataloader()):
        images, labels = collect(loader)
        pixels = ((images[:, 0, 2:30, 2:30] + 0.1) * (255 / 1.275)).round().astype(np.uint8)
        seen += [(p.tobytes(), label) for p, label in zip(pixels, labels, strict=True)]
    arrays = tiny_mnist.arrays
    pairs = zip(arrays["train_images"], arrays["train_labels"], strict=True)
    expected = [(image.tobytes(), label) for image, label in pairs]
    assert len(set(expected)) == 640 and sorted(seen) == sorted(expected)


def test_shifted_training_images_are_moved_by_at_most_one_pixel(data):
    (plain, labels), (shifted, shifted_labels) = (
        collect(data(augment=name).train_dataloader()) for name in ("none", "shift")
    )
    assert np.array_equal(labels, shifted_labels)  # distortions do not change the order
    offsets = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    used = set()
    for image, moved in zip(plain[:, 0], shifted[:, 0], strict=True):
        # Each image has a border of 2 pixels, so np.roll moves only background across the edge.
        (move,) = [m for m in offsets if np.array_equal(np.roll(image, m, (0, 1)), moved)]
        used.add(move)
    assert used == set(offsets)


def test_each_pass_without_a_trainer_is_an_epoch(data):
    module = data(augment="shift")
    loader = module.train_dataloader()
    passes = [collect(loader), collect(loader), collect(module.train_dataloader())]
    assert len({labels.tobytes() for _, labels in passes}) == 3
    again = data(augment="shift")
    for (images, labels), (own_images, own_labels) in zip(
        passes, (collect(again.train_dataloader()) for _ in range(3)), strict=True
    ):
        assert np.array_equal(images, own_images) and np.array_equal(labels, own_labels)


def test_the_order_depends_on_seed_and_epoch_only(data):
    def labels(seed, epoch):
        module = data(seed=seed)
        device = torch.device("cpu")
        module.trainer = SimpleNamespace(
            overfit_batches=0, distributed_sampler_kwargs=None, current_epoch=epoch,
            strategy=SimpleNamespace(root_device=device),
        )  # fmt: skip
        return tuple(collect(module.train_dataloader())[1])

    assert labels(0, 1) == labels(0, 1)
    assert len({labels(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader"])
def test_three_ranks_share_each_split_without_repetition(data, loader):
    module = data()
    whole, labels = collect(getattr(module, loader)())
    parts = []
    for rank in range(3):
        module.trainer = SimpleNamespace(
            overfit_batches=0,
            distributed_sampler_kwargs={"rank": rank, "num_replicas": 3},
            current_epoch=0,
        )
        parts += [image.tobytes() for image in collect(getattr(module, loader)())[0]]
    assert sorted(parts) == sorted(image.tobytes() for image in whole)


@pytest.mark.fact(
    "The mean of each pixel over the training images is subtracted, and nothing else is done",
    source="Krizhevsky 2012, section 2",
    code="data/resident.py:ResidentData",
)
@pytest.mark.parametrize("fit, size", [("pad", 32), ("crop", 24), ("resize", 14)])
def test_images_are_fitted_and_the_mean_of_the_training_images_is_subtracted(
    data, tiny_mnist, fit, size
):
    module = data(input={"size": size, "fit": fit, "low": 0, "high": 255, "subtract_mean": True})
    fit_to_size = {
        "pad": lambda x: np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2))),
        "crop": lambda x: x[:, :, 2:26, 2:26],
        "resize": halved,
    }[fit]
    train, test = (
        fit_to_size(tiny_mnist.arrays[f"{split}_images"][:, None].astype(np.float64))
        for split in ("train", "test")
    )
    indices, _ = split_indices(tiny_mnist.arrays["train_labels"], 640, 128, True)
    mean = train[indices].mean(0)
    images, _ = collect(module.test_dataloader())
    np.testing.assert_allclose(images, test - mean, atol=1e-3)
    if fit == "pad":
        assert module.preprocessing.mean[0, 0, 0] == 0  # the background is unchanged


def halved(images: np.ndarray) -> np.ndarray:
    """Bilinear resizing with antialiasing: a triangular filter 4 pixels wide."""
    size = images.shape[-1]
    weights = np.zeros((size // 2, size))
    for y, i in np.ndindex(*weights.shape):
        weights[y, i] = max(0, 1 - abs((y + 0.5) * 2 - 0.5 - i) / 2)
    weights /= weights.sum(1, keepdims=True)
    return weights @ images @ weights.T


def test_training_images_cropped_by_an_augmentation_are_not_cropped_again(data, tiny_mnist):
    module = data(
        input={"size": 24, "fit": "crop", "low": 0, "high": 255, "subtract_mean": False},
        augment="crop",
        augmentations={"crop": [RandomCrop(24), RandomFlip()]},
    )
    images, _ = collect(module.train_dataloader())
    assert images.shape == (512, 1, 24, 24)
    expected = {
        part.tobytes()
        for image in tiny_mnist.arrays["train_images"]
        for top in range(5)
        for left in range(5)
        for window in [image[top : top + 24, left : left + 24]]
        for part in (window, window[:, ::-1])
    }
    assert all(image.astype(np.uint8).tobytes() in expected for image in images)


@pytest.mark.parametrize("which, count", [("nine", 9), ("ten", 10)])
def test_test_images_are_patches_and_validation_images_are_single(data, tiny_mnist, which, count):
    options = {"size": 24, "fit": "crop", "low": 0, "high": 255, "subtract_mean": True}
    module = data(input=options, test_patches=which)
    images, labels = collect(module.test_dataloader())
    assert images.shape == (200, count, 1, 24, 24) and labels.shape == (200,)
    whole = tiny_mnist.arrays["test_images"]
    mean = tiny_mnist.arrays["train_images"][module.train_indices].mean(0)[2:26, 2:26]
    np.testing.assert_allclose(images[:, 4, 0], whole[:, 2:26, 2:26] - mean, atol=1e-3)
    np.testing.assert_allclose(images[:, 0, 0], whole[:, :24, :24] - mean, atol=1e-3)
    assert collect(module.val_dataloader())[0].shape == (128, 1, 24, 24)


@pytest.mark.parametrize("shape", [(28, 28, -1), (-1, 784), (-1, 1, 28, 28)])
def test_arrays_with_another_shape_give_the_same_images(data, tiny_mnist, shape, monkeypatch):
    expected = collect(data().test_dataloader())
    for split in ("train", "test"):
        for name, other in (("images", shape), ("labels", (-1, 1))):
            key = f"{split}_{name}"
            monkeypatch.setitem(tiny_mnist.arrays, key, tiny_mnist.arrays[key].reshape(other))
    monkeypatch.setattr(fetch, "load", lambda *_: tiny_mnist.arrays)
    module = data()
    found = collect(module.test_dataloader())
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_setup_twice_keeps_the_tensors_and_uses_no_more_memory(data):
    module = data()
    before = {name: tensor.data_ptr() for name, tensor in module.resident.items()}
    module.setup("test")
    assert {name: tensor.data_ptr() for name, tensor in module.resident.items()} == before
    assert module.resident["train_images"].dtype == torch.uint8


# --- The real MNIST -------------------------------------------------------------------------------


@pytest.mark.fact(
    "The mean input is roughly 0 (0.028); the variance, said to be roughly 1, is 0.12",
    source="LeCun 1998, section II.B",
    code="data/transforms.py:scale",
)
@pytest.mark.slow
def test_mnist_has_the_well_known_mean_and_deviation():
    """0.1307 and 0.3081 for 28 x 28 pixels in [0, 1]; those with the border follow from them."""
    sums = OmegaConf.load(MNIST).sha256
    module = ResidentData(
        dataset="mnist", channels=1, size=28, num_classes=10, class_names=None, train_size=60000,
        sha256=sums, val_size=5000, batch_size=128, eval_batch_size=500, augment="none",
        augmentations={"none": []}, input=INPUT, data_dir=None, seed=0, test_patches="centre",
    )  # fmt: skip
    module.prepare_data()
    module.setup("fit")
    assert module.facts()["val_indices_sha256"] == VAL_INDICES
    assert len(module.train_dataloader()) == 430

    pixels = module.resident["train_images"]
    assert pixels.shape == (60000, 1, 32, 32)
    inner = pixels[:, :, 2:30, 2:30].double() / 255
    assert abs(inner.mean() - 0.1307) < 5e-5 and abs(inner.std() - 0.3081) < 5e-5
    assert int(pixels.sum()) == int(pixels[:, :, 2:30, 2:30].sum())  # the border is 0

    share = (28 / 32) ** 2
    mean = 0.1307 * share
    deviation = ((0.3081**2 + 0.1307**2) * share - mean**2) ** 0.5
    found = module.preprocessing.to_input(pixels).double()
    assert abs(found.mean() - (-0.1 + 1.275 * mean)) < 1e-4
    assert abs(found.std() - 1.275 * deviation) < 1e-4
    assert abs(found.mean() - 0.0276) < 1e-4 and abs(found.var() - 0.123) < 1e-3

"""The figures of pictures.py, and the numbers in them compared with those computed by hand."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageDraw

from classic_cnns.classifier import Classifier
from classic_cnns.config.compose import Composer, compose
from classic_cnns.data.batches import Batches
from classic_cnns.data.preprocessing import Preprocessing
from classic_cnns.model.lenet5 import MLELoss
from classic_cnns.run import pictures
from classic_cnns.run.demo import answer
from classic_cnns.run.pictures import TrainedNet, distinct_names, draw, noisy, transformed
from classic_cnns.run.run import run
from tests.recipes import recipe


def test_images_are_shifted_and_noise_is_added():
    images = torch.randint(256, (3, 1, 9, 9), dtype=torch.uint8)
    right = transformed(images, shift=2)
    assert torch.equal(right[..., 2:], images[..., :-2]) and not right[..., :2].any()
    assert torch.equal(transformed(images, angle=0), images) and torch.equal(
        noisy(images, 0), images
    )
    grey = torch.full((50, 1, 40, 40), 128, dtype=torch.uint8)
    assert noisy(grey, 16).float().std().item() == pytest.approx(16, rel=0.02)


def test_images_of_all_classes_are_chosen_with_their_labels():
    class SortedFiles(Batches):
        def read(self, shares):  # as from class folders: every ninth file cannot be decoded
            for share in shares:
                rows = (share % 9 != 0).nonzero().flatten()
                yield self.images[share[rows]], rows

    pixels = torch.arange(5000).reshape(-1, 1, 1, 1)
    labels = torch.arange(5000) // 100
    data = SimpleNamespace(
        batches=lambda split, size, to_input: SortedFiles(
            pixels, labels, torch.arange(5000), size, to_input=to_input
        )
    )
    images, found = TrainedNet.images(SimpleNamespace(data=data), "test", 2000)
    assert torch.equal(found, images.flatten() // 100) and set(found.tolist()) == set(range(50))
    assert len(images) == len(set(images.flatten().tolist())) and not (images % 9 == 0).any()
    assert 1700 < len(images) < 1850


def test_errors_are_counted_over_all_batches():
    scores = torch.eye(4)[[0, 1, 2, 3, 0, 1]]
    trained = SimpleNamespace(scores=lambda _: scores)
    assert TrainedNet.errors(trained, None, torch.tensor([0, 1, 2, 0, 0, 2])) == pytest.approx(
        2 / 6
    )


def test_runs_with_equal_names_are_named_by_the_differing_part_of_their_paths():
    paths = ("out", "a", "seeds", "0", "best.ckpt"), ("out", "b", "seeds", "0", "best.ckpt")
    assert distinct_names(paths) == ["a", "b"]
    jobs = [("sweeps", "1", job, "checkpoints", "best.ckpt") for job in "01"]
    assert distinct_names(jobs) == ["0", "1"]
    assert distinct_names([jobs[0], jobs[0]]) == [" (1)", " (2)"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lenet5", "convnet_cifar10_13pct"])
def test_all_figures_of_a_run_are_drawn(tiny_mnist, tiny_config_dir, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "TESTED", 40)
    words = ["data.test_patches=ten"] if model != "lenet5" else []
    words += ["data=tiny", f"data_dir={tiny_mnist.folder}", f"model={model}", "run_dir=a"]
    words += ["trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.log_every_n_steps=2"]
    run(compose(*words, config_dirs=[str(tiny_config_dir)]))
    names = {path.name for path in draw([Composer([str(tiny_config_dir)]).load_run("a")], None)}
    assert {"inputs.png", "maps_0.png", "maps_3.png", "answers.png", "robustness.png"} <= names
    assert ("kernels_C3.png" if model == "lenet5" else "kernels_conv1.png") in names
    assert ("patches.png" in names) == (model != "lenet5")
    assert names == {path.name for path in (tmp_path / "a" / "pictures").iterdir()}


def test_the_demo_gives_the_answer_of_the_net_and_shows_every_layer():
    net = Classifier(recipe("model=lenet5").net.eval(), MLELoss(), lambda _: None)
    net.preprocessing = Preprocessing(
        low=-0.1, high=1.175, size=32, fit="pad", channels=1, image_size=28, classes="0123456789"
    )
    picture = Image.new("RGBA", (400, 400))  # a sketch: black strokes on a transparent background
    ImageDraw.Draw(picture).line([(100, 100), (300, 100), (200, 320)], fill="black", width=30)
    shares, figure = answer(net, picture)
    assert list(shares.values()) == pytest.approx(net.probabilities(picture)[0].tolist())
    names = [axes.get_ylabel() for axes in figure.axes]
    assert names == ["input", "C1", "S2", "C3", "S4", "C5", "F6", "RBF"]
    best = max(shares, key=shares.get)
    assert figure.get_suptitle().startswith(f"{best} {shares[best]:.1%}  ")

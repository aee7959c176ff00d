"""What pictures.py draws, against what the same numbers are by hand."""

from types import SimpleNamespace

import pytest
import torch

from classic_cnns.config.compose import Composer, compose
from classic_cnns.run.pictures import Trained, draw, moved, noisy
from classic_cnns.run.run import run


def test_images_are_moved_by_whole_pixels_and_get_their_noise():
    images = torch.randint(256, (3, 1, 9, 9), dtype=torch.uint8)
    right = moved(images, shift=2)
    assert torch.equal(right[..., 2:], images[..., :-2]) and not right[..., :2].any()
    assert torch.equal(moved(images, angle=0), images) and torch.equal(noisy(images, 0), images)
    grey = torch.full((50, 1, 40, 40), 128, dtype=torch.uint8)
    assert noisy(grey, 16).float().std().item() == pytest.approx(16, rel=0.02)


def test_errors_are_counted_over_all_batches():
    scores = torch.eye(4)[[0, 1, 2, 3, 0, 1]]
    trained = SimpleNamespace(scores=lambda _: scores)
    assert Trained.errors(trained, None, torch.tensor([0, 1, 2, 0, 0, 2])) == pytest.approx(2 / 6)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lenet5", "convnet_cifar10_13pct"])
def test_a_run_is_drawn_with_all_its_pictures(
    tiny_mnist, tiny_config_dir, tmp_path, monkeypatch, model
):
    monkeypatch.chdir(tmp_path)
    words = ["data.test_patches=ten"] if model != "lenet5" else []
    words += ["data=tiny", f"data_dir={tiny_mnist.folder}", f"model={model}", "run_dir=a"]
    words += ["trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.log_every_n_steps=2"]
    run(compose(*words, config_dirs=[str(tiny_config_dir)]))
    names = {path.name for path in draw([Composer([str(tiny_config_dir)]).of_run("a")], None)}
    assert {"inputs.png", "maps_0.png", "maps_3.png", "answers.png", "robustness.png"} <= names
    assert ("kernels_C1.png" if model == "lenet5" else "kernels_conv1.png") in names
    assert ("patches.png" in names) == (model != "lenet5")
    assert names == {path.name for path in (tmp_path / "a" / "pictures").iterdir()}

"""Use of a trained net: the test, one image and 10,000 images, compared with plain loops."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from classic_cnns import compose, train
from classic_cnns.config.compose import Composer
from classic_cnns.data.fetch import cache_directory
from classic_cnns.model.lenet5 import LeNet5, penalty_loss
from classic_cnns.run.evaluate import evaluate
from classic_cnns.run.predict import predict
from tests.bench import Row, compare

PREDICT = Path(__file__).parents[2] / "src" / "predict.py"
IMPORTS = "import torch, lightning.pytorch, torchmetrics, torchvision"
PARTS = ("images", "labels")
FILES, LOOPED = 10_000, 500  # the loop reads only 500, and its time is multiplied by 20


def seconds(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    with redirect_stdout(StringIO()):
        task()
    return time.perf_counter() - start


def net_of(checkpoint: Path) -> LeNet5:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    net = LeNet5()
    net.load_state_dict({name.removeprefix("net."): x for name, x in state.items()}, strict=False)
    return net.eval()


def to_input(images: torch.Tensor) -> torch.Tensor:
    return F.pad(images.float() / 255 * 1.275 - 0.1, (2, 2, 2, 2), value=-0.1)


@torch.inference_mode()
def plain_test(checkpoint: Path, batch: int) -> float:
    """The test as a loop over tensors, with loss and error rate."""
    net, loss, loss_sum, wrong = net_of(checkpoint), penalty_loss(0.1), 0.0, 0
    arrays = [np.load(cache_directory(None) / "mnist" / f"test_{name}.npy") for name in PARTS]
    images, labels = to_input(torch.from_numpy(arrays[0])[:, None]), torch.from_numpy(arrays[1])
    for x, y in zip(images.split(batch), labels.long().split(batch), strict=True):
        scores = net(x)
        loss_sum += loss(scores, y).item() * len(y)
        wrong += (scores.argmax(1) != y).sum().item()
    return wrong / len(labels)


@torch.inference_mode()
def file_by_file(checkpoint: Path, paths: list[str]) -> None:
    net = net_of(checkpoint)
    for path in paths:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("L")))
        best = net(to_input(pixels[None, None])).softmax(1).topk(5)
        print(path, best.indices[0].tolist(), best.values[0].tolist())


def use(rounds: int) -> Iterator[Row]:
    with TemporaryDirectory() as place:
        folder = Path(place)
        words = ["+trainer.limit_train_batches=10", "trainer.max_epochs=1", "logger=null"]
        seconds(lambda: train(compose("model=lenet5", f"run_dir={folder / 'run'}", *words)))
        checkpoint, config = Composer().load_run(folder / "run")
        images = np.load(cache_directory(None) / "mnist" / "test_images.npy")
        paths = [str(folder / f"{number}.png") for number in range(FILES)]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(path)

        yield compare(
            "10,000 test images of MNIST by evaluate, without imports",
            lambda: seconds(lambda: evaluate(checkpoint, config, "test")),
            lambda: seconds(lambda: plain_test(checkpoint, config.data.eval_batch_size)),
            "<= 1.2", ("ours", "plain loop over tensors"), rounds,
        )  # fmt: skip
        one = [sys.executable, str(PREDICT), str(folder / "run"), paths[0]]
        bare = [sys.executable, "-c", IMPORTS]
        yield compare(
            "command to the prediction for an image",
            lambda: seconds(lambda: subprocess.run(one, check=True, capture_output=True)),
            lambda: 1 + seconds(lambda: subprocess.run(bare, check=True, capture_output=True)),
            "<= 1", ("ours", "importing the libraries, plus a second"), rounds,
        )  # fmt: skip
        yield compare(
            f"{FILES:,} small PNGs by predict, without imports",
            lambda: seconds(lambda: predict(checkpoint, config, paths, False)),
            lambda: seconds(lambda: file_by_file(checkpoint, paths[:LOOPED])) * FILES / LOOPED,
            ">= 3", ("ours", "file by file"), rounds,
        )  # fmt: skip

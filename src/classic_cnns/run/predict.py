"""Classification of picture files, decoded by several processes, and figures that explain it."""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from classic_cnns import UserError, printable
from classic_cnns.callbacks.activations import record
from classic_cnns.classifier import Classifier
from classic_cnns.data.preprocessing import Preprocessing
from classic_cnns.data.workers import read_ahead
from classic_cnns.files import make_folder
from classic_cnns.model.lenet5 import LeNet5
from classic_cnns.report.log import progress_bar
from classic_cnns.report.pictures import maps, save_figure
from classic_cnns.run.trained import load_net
from classic_cnns.trainer.devices import core_count, limit_threads

NOTES = {"inverted": "dark on light: inverted", "centred": "ink scaled and centred"}
SHOWN = 5  # classes
AT_ONCE = 100  # files in a batch; more are decoded by worker processes


class Pictures(Dataset):
    """Reads pictures by index: uint8 (n, C, S, S), and the changes to or the error of each."""

    def __init__(self, paths: Sequence[str], preprocessing: Preprocessing) -> None:
        self.paths, self.read = paths, preprocessing.read
        side = preprocessing.image_size
        self.shape = preprocessing.channels, side, side

    def __getitem__(
        self, numbers: Sequence[int]
    ) -> tuple[np.ndarray, list[tuple[int, dict[str, bool], str]]]:
        pixels, outcomes = [], []
        for number in numbers:
            try:
                image, changes = self.read(self.paths[number])
                pixels.append(image)
                outcomes.append((number, changes, ""))
            except UserError as error:
                outcomes.append((number, {}, str(error)))
        return np.array(pixels, np.uint8).reshape(-1, *self.shape), outcomes


def predict(
    checkpoint: Path,
    config: DictConfig,
    paths: Sequence[str],
    as_json: bool,
    folder: Path | None = None,
) -> int:
    """Print the most probable classes of each picture; returns 1 if one could not be read, else 0.

    With `folder`, a figure for each picture is written there, which shows all layers.
    """
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error anyway
    limit_threads()
    net = load_net(checkpoint, config)
    preprocessing = net.prepared
    if torch.cuda.is_available() and config.trainer.accelerator != "cpu":
        net.cuda()
    figures = figure_paths(folder, paths) if folder else []
    numbers = range(len(paths))
    batches = [numbers[start : start + AT_ONCE] for start in numbers[::AT_ONCE]]
    workers = min(core_count(), len(batches) - 1)
    loader = read_ahead(Pictures(paths, preprocessing), batches, workers)
    failures, width = [], min(60, max(map(len, paths)))
    with progress_bar(" pictures", len(paths), delay=2) as bar, torch.no_grad():
        for read, outcomes in loader:
            pixels = torch.from_numpy(read)
            scores = net(preprocessing(pixels.to(net.device)))
            rows = zip(pixels, top_classes(net, scores.float().softmax(1)), strict=True)
            for number, changes, failure in outcomes:
                path = paths[number]
                if failure:
                    failures.append(failure)
                    line = {"file": path, "error": failure}
                else:
                    image, named = next(rows)
                    line = {"file": path, **changes, "classes": [
                        {"class": name, "probability": share} for name, share in named.items()
                    ]}  # fmt: skip
                    if figures:
                        save_figure(explain(net, image, named), figures[number])
                        line["explained"] = str(figures[number])
                if as_json:
                    print(json.dumps(line))
                elif not failure:
                    answers = "  ".join(f"{name} {share:6.1%}" for name, share in named.items())
                    notes = [NOTES[name] for name, made in changes.items() if made]
                    note = f"  ({'; '.join(notes)})" if notes else ""
                    print(f"{printable(path):{width}}  {answers}{note}")
                bar.update()
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return int(bool(failures))


def figure_paths(folder: Path, paths: Sequence[str]) -> list[Path]:
    """A unique path in `folder` for each figure; UserError if the folder cannot be written to."""
    make_folder(folder, "--explain")
    named: dict[str, int] = {}  # number of files with this name so far
    for stem in (Path(path).stem for path in paths):
        while (name := f"{stem}-{named[stem] + 1}" if stem in named else stem) in named:
            named[stem] += 1
        named[name] = 0
    return [folder / f"{name}_layers.png" for name in named]


def top_classes(net: Classifier, probabilities: Tensor) -> list[dict[str, float]]:
    """For each row of probabilities (N, classes), the most probable classes, best first."""
    best, classes = probabilities.topk(min(SHOWN, probabilities.shape[1]), 1), net.classes
    return [
        {classes[number]: probability for number, probability in zip(numbers, own, strict=True)}
        for numbers, own in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def explain(net: Classifier, pixels: Tensor, found: dict[str, float]) -> Any:
    """A matplotlib figure for a picture, uint8 (C, S, S) of the data set's size or padded.

    `found` are the probabilities of the classes named in its title.
    """
    inputs = net.prepared.to_input(pixels[None].to(net.device))
    outputs = record(net.net, inputs, pooling=True).found
    layers = {name: output[0].cpu() for name, (_, output) in outputs.items()}
    bitmaps = net.net.output.weight.cpu() if isinstance(net.net, LeNet5) else None
    return maps(inputs[0].cpu(), layers, bitmaps, found)

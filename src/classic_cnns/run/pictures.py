"""Figures of trained nets as PNG files, from checkpoints and test images."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from classic_cnns import UserError
from classic_cnns.callbacks.activations import record
from classic_cnns.classifier import Classifier
from classic_cnns.data.batches import generator
from classic_cnns.data.transforms import patches_of
from classic_cnns.files import make_folder
from classic_cnns.report import pictures
from classic_cnns.report.log import progress_bar
from classic_cnns.run.predict import explain, top_classes
from classic_cnns.run.trained import data_of, load_net

TESTED = 2000  # test images for each point of a robustness curve
SEARCHED = 5000  # training images among which the nearest are searched
BATCH = 500
# Changes of test images, uint8 (N, C, H, W), each with the values of its parameter.
CHANGES: dict[str, tuple[Callable[[Tensor, float], Tensor], list[float]]] = {
    "shift in pixels": (lambda x, v: transformed(x, shift=v), list(range(-8, 9, 2))),
    "rotation in degrees": (lambda x, v: transformed(x, angle=v), list(range(-60, 61, 15))),
    "scale": (
        lambda x, v: transformed(x, scale=v),
        [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4],
    ),
    "standard deviation of noise, of 255": (lambda x, v: noisy(x, v), [0, 16, 32, 48, 64, 96, 128]),
}


def transformed(images: Tensor, shift: float = 0, angle: float = 0, scale: float = 1) -> Tensor:
    mode = F.InterpolationMode.BILINEAR
    return F.affine(images, angle, [shift, 0], scale, [0.0, 0.0], interpolation=mode)


def noisy(images: Tensor, deviation: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + deviation * noise).round().clamp(0, 255).byte()


class TrainedNet:
    """A net in eval mode, with access to the images of its data, uint8 (N, C, H, W)."""

    def __init__(self, checkpoint: Path, config: DictConfig) -> None:
        self.name = config.name
        self.net: Classifier = load_net(checkpoint, config)
        self.data = data_of(config, self.net)

    def images(self, split: str, count: int) -> tuple[Tensor, Tensor]:
        """`count` images of the split, or all, and their labels; always the same ones.

        They are chosen at random, since class folders are sorted by class.
        """
        batches = self.data.batches(split, BATCH, to_input=lambda images: images)
        order = torch.randperm(len(batches.indices), generator=generator(0))
        shares = batches.indices[order[:count]].split(BATCH)
        images, labels = [], []
        for share, (part, rows) in zip(shares, batches.read(shares), strict=True):
            images.append(part)
            labels.append(batches.labels[share[rows]])  # without files that cannot be decoded
        return torch.cat(images), torch.cat(labels)

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        prepared = self.net.prepared
        return torch.cat([self.net(prepared(part)).float() for part in images.split(BATCH)])

    def errors(self, images: Tensor, labels: Tensor) -> float:
        return (self.scores(images).argmax(1) != labels).double().mean().item()

    def last_hidden(self, images: Tensor) -> Tensor:
        """The units of the last hidden layer, (N, units); the inputs if there is none."""
        units = []
        for part in map(self.net.prepared.to_input, images.split(BATCH)):
            layers = record(self.net.net, part).found
            last = list(layers.values())[-1][1] if layers else part
            units.append(last.flatten(1).float())
        return torch.cat(units)


def draw(runs: list[tuple[Path, DictConfig]], folder: Path | None) -> Iterator[Path]:
    """Draw the figures of the first run, and the robustness of all; yields their paths."""
    trained = [TrainedNet(*run) for run in runs]
    first, checkpoint = trained[0], runs[0][0]
    run = checkpoint.parent.parent
    in_run = checkpoint.parent.name == "checkpoints" and (run / "config.yaml").exists()
    if not folder and not in_run:
        raise UserError(f"--to: is needed for {checkpoint}, which is in no run directory")
    folder = folder or run / "pictures"
    make_folder(folder, "--to")
    net, prepared = first.net.net, first.net.prepared
    images, labels = first.images("test", TESTED)
    scores = first.scores(images)

    yield pictures.save(pictures.inputs(images[:32]), folder / "inputs.png")
    if prepared.fit == "crop":
        patches = patches_of(images[:3], prepared.size, "ten")
        yield pictures.save(pictures.inputs(patches, 10), folder / "patches.png")
    for name, weights in pictures.convolutions(net.state_dict()).items():
        image = pictures.kernels(weights, pictures.towers_of(net))
        yield pictures.save(image, folder / f"kernels_{name}.png")
    best = top_classes(first.net, scores[:8].softmax(1))
    for number, image in enumerate(images[:4]):
        figure = explain(first.net, image, best[number])
        yield pictures.save_figure(figure, folder / f"maps_{number}.png")

    answers = scores.argmax(1)
    wrong = (answers != labels).nonzero().flatten()[:60].tolist()
    if wrong:
        made = [(images[i].float(), int(labels[i]), int(answers[i])) for i in wrong]
        shares = scores.softmax(1)[wrong, answers[wrong]].tolist()
        image = pictures.mistakes(made, first.net.classes, shares)
        yield pictures.save(image, folder / "mistakes.png")
    pool, _ = first.images("train", SEARCHED)
    hidden = first.last_hidden(pool)
    eight = images[:8]
    distances = torch.cdist(first.last_hidden(eight), hidden)
    nearest = distances.topk(min(6, len(pool)), largest=False).indices
    names = [first.net.classes[label] for label in labels[:8].tolist()]
    figure = pictures.answers(eight, names, best, pool[nearest])
    yield pictures.save_figure(figure, folder / "answers.png")

    names = [each.name for each in trained]
    if len(set(names)) < len(names):
        names = distinct_names([path.parts for path, _ in runs])
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    points = sum(len(values) for _, values in CHANGES.values()) * len(trained)
    with progress_bar(" tests", points, delay=2) as bar:
        for name, each in zip(names, trained, strict=True):
            own, truth = each.images("test", TESTED)
            for change, (apply, values) in CHANGES.items():
                errors = []
                for value in values:
                    errors.append(each.errors(apply(own, value), truth))
                    bar.update()
                curves.setdefault(change, {})[name] = (values, errors)
    yield pictures.save_figure(pictures.robustness(curves), folder / "robustness.png")


def distinct_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """For each path, its parts that not all of them share, numbered if these are equal too."""
    shared = set.intersection(*(set(enumerate(path)) for path in paths))
    own = [[part for at, part in enumerate(path) if (at, part) not in shared] for path in paths]
    names = list(map("/".join, own))
    return [f"{name} ({n})" if names.count(name) > 1 else name for n, name in enumerate(names, 1)]

"""Measurements for the claims on a run's checkpoint and the test images of its data."""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from classic_cnns.callbacks.activations import inactive_share, record
from classic_cnns.config.compose import Composer
from classic_cnns.data.transforms import pad_to
from classic_cnns.report.pictures import colour, convolutions
from classic_cnns.run.pictures import TrainedNet, transformed

REST = 0.005  # errors among those that are not rejected, section III.D of 1998
NEIGHBOURS = 3  # k of section III.C of 1998
SHOWN = 1000  # images for which a unit is dead or saturated


def measure(
    what: str,
    run: Path,
    words: list[str],
    changes: dict[str, list[float]],
    count: int = sys.maxsize,
) -> dict[str, float]:
    """Metrics by name, 0 to 1; `words` are overrides of the run's data.

    "error" is the test error, "rejection" the share that must be rejected for an error of REST on
    the others, "robustness" the error after each of the `changes`, "neighbours" the error of a
    classifier by nearest neighbours, for which only the run's data count, "units" the share of
    saturated or dead units of each layer, "colour" by how much the halves of the first kernels
    differ in their share of colour. At most `count` test images are used.
    """
    checkpoint, config = Composer().load_run(run, words)
    trained = TrainedNet(checkpoint, config)
    prepared = trained.net.prepared
    prepared.test_patches = config.data.test_patches
    images, labels = trained.images("test", count)
    if what == "neighbours":
        classes = nearest_classes(images, *trained.images("train", sys.maxsize))
        return {"error/test": (classes != labels).double().mean().item()}
    scores = trained.scores(images)
    found = {"error/test": (scores.argmax(1) != labels).double().mean().item()}
    if what == "units":
        outputs = record(trained.net.net, prepared.to_input(images[:SHOWN])).found
        shares = {layer: inactive_share(*output) for layer, output in outputs.items()}
        found |= {f"inactive/{layer}": share for layer, share in shares.items()}
        found["inactive"] = mean(shares.values())
    if what == "colour":
        found |= specialisation(next(iter(convolutions(trained.net.net.state_dict()).values())))
    if what == "rejection":
        found["rejected"] = rejected(scores, labels)
    if what == "robustness":
        field = pad_to(images, prepared.size) if prepared.fit == "pad" else images
        for change, values in changes.items():
            for value in values:
                error = trained.errors(CHANGES[change](field, value), labels)
                found[f"error/{change} {value:g}"] = error
    return found


def specialisation(kernels: Tensor) -> dict[str, float]:
    """The share of colour in both halves of kernels (N, 3, h, w), and by how much they differ.

    The halves are the towers of a net that has two.
    """
    less, more = sorted(map(colour, kernels.chunk(2)))
    return {"colour/less": less, "colour/more": more, "specialisation": more - less}


def rejected(scores: Tensor, labels: Tensor, rest: float = REST) -> float:
    """The smallest share whose rejection leaves at most `rest` errors among the others.

    Images are rejected in the order of the gap between the two best scores (N, classes), as in
    1998.
    """
    best = scores.topk(2, 1).values
    wrong = (scores.argmax(1) != labels)[(best[:, 0] - best[:, 1]).argsort()]
    left = wrong.flip(0).cumsum(0).flip(0)  # errors from here on
    kept = torch.arange(len(wrong), 0, -1)
    enough = (left <= rest * kept).nonzero()
    return enough[0].item() / len(wrong) if len(enough) else 1.0


def nearest_classes(images: Tensor, known: Tensor, labels: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """The most frequent class (N,) among the `k` images `known` (M, ...) nearest to each image.

    The distance is the Euclidean one between pixels. Of equally frequent classes, the one of the
    nearest image counts.
    """
    table, found = known.flatten(1).float(), []
    for part in images.flatten(1).float().split(100):
        near = labels[torch.cdist(part, table).topk(k, largest=False).indices]  # nearest first
        votes = (near[:, :, None] == near[:, None]).sum(2)  # for the class of each neighbour
        found.append(near.gather(1, votes.argmax(1, keepdim=True))[:, 0])
    return torch.cat(found)


def inverted(images: Tensor, share: float) -> Tensor:
    """Invert each pixel with the probability `share`; the net of Fig. 13 was trained on such."""
    chosen = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) < share
    return torch.where(chosen, 255 - images, images)


# Changes of images, uint8 (N, C, H, W); shifts are in pixels, rotations in degrees.
CHANGES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "vertical shift": lambda x, v: transformed(x.mT, shift=v).mT,
    "rotation": lambda x, v: transformed(x, angle=v),
    "scale": lambda x, v: transformed(x, scale=v),
    "inverted pixels": inverted,
}

"""What a trained net makes of a picture: its input, the maps of its layers, and its answer."""

from typing import Any

from torch import Tensor

from classic_cnns.callbacks.activations import activations
from classic_cnns.classifier import Classifier
from classic_cnns.report import pictures

SHOWN = 5  # classes


def likeliest(net: Classifier, shares: Tensor) -> list[dict[str, float]]:
    """For each picture its likeliest classes, best first, of the probabilities (N, classes)."""
    best, classes = shares.topk(min(SHOWN, shares.shape[1]), 1), net.classes
    return [
        {classes[number]: share for number, share in zip(numbers, own, strict=True)}
        for numbers, own in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def explain(net: Classifier, pixels: Tensor, found: dict[str, float]) -> Any:
    """A figure of matplotlib for a picture, uint8 (C, S, S) of the data set's size.

    `found` are the probabilities of the classes that its title names.
    """
    inputs = net.prepared.to_input(pixels[None].to(net.device))
    layers = {name: output[0].cpu() for name, (_, output) in activations(net.net, inputs).items()}
    whole: Any = net.net
    bitmaps = whole.output.weight.cpu() if hasattr(whole, "features") else None  # LeNet-5's
    return pictures.maps(inputs[0].cpu(), layers, bitmaps, found)

"""A figure of how a trained net processes a picture: input, maps of all layers, and answer."""

from typing import Any

from torch import Tensor

from classic_cnns.callbacks.activations import activations
from classic_cnns.classifier import Classifier
from classic_cnns.model.lenet5 import LeNet5
from classic_cnns.report import pictures

SHOWN = 5  # classes


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
    outputs = activations(net.net, inputs, pooling=True)
    layers = {name: output[0].cpu() for name, (_, output) in outputs.items()}
    lenet5: Any = net.net if isinstance(net.net, LeNet5) else None
    bitmaps = lenet5.output.weight.cpu() if lenet5 else None
    return pictures.maps(inputs[0].cpu(), layers, bitmaps, found)

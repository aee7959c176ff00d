"""A web page where a trained net classifies drawings, after LeCun's demonstration of 1993."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from classic_cnns.classifier import Classifier
from classic_cnns.run.predict import explain, top_classes
from classic_cnns.run.trained import load_net


def answer(net: Classifier, picture: Any) -> tuple[dict[str, float], Any]:
    """The probability of each class for a PIL image, and a figure of all layers."""
    probabilities = net.probabilities(picture)
    pixels = torch.from_numpy(np.array(net.prepared.read(picture)[0]))
    figure = explain(net, pixels, top_classes(net, probabilities)[0])
    return dict(zip(net.classes, probabilities[0].tolist(), strict=True)), figure


def page(checkpoint: Path, config: DictConfig) -> Any:
    """The page, ready to be launched: a sketchpad for digits, an upload for other data."""
    import gradio

    net = load_net(checkpoint, config)
    digits = net.prepared.channels == 1

    def show(given: Any) -> Any:
        picture = given["composite"] if isinstance(given, dict) else given
        return (None, None) if picture is None else answer(net, picture)

    if digits:
        brush = gradio.Brush(default_size=24, colors=["#000000"], color_mode="fixed")
        canvas: Any = gradio.Sketchpad(
            type="pil", label="Draw", brush=brush, canvas_size=(400, 400)
        )
    else:
        canvas = gradio.Image(type="pil", label="Drop a picture")
    outputs = [gradio.Label(num_top_classes=5, label="Answer"), gradio.Plot(label="Layers")]
    return gradio.Interface(
        show, canvas, outputs, title=config.name, flagging_mode="never", analytics_enabled=False
    )

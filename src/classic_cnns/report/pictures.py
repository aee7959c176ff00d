"""The pictures of a run: what the net sees, its kernels, what it mistook, and for what."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from classic_cnns.report.markdown import aligned


def kernels(weights: Tensor, towers: int) -> Tensor:
    """Kernels (N, C, h, w) as an image (3, H, W) from 0 to 1, the towers side by side.

    Like Fig. 3 of the AlexNet paper. Each kernel has its own contrast. Three channels are shown as
    red, green and blue, others in grey by their mean; a weight is four pixels wide.
    """
    if weights.shape[1] != 3:
        weights = weights.mean(1, keepdim=True)
    large = weights.repeat_interleave(4, 2).repeat_interleave(4, 3)
    grids = [
        make_grid(tower, nrow=6, padding=4, normalize=True, scale_each=True, pad_value=1)
        for tower in large.chunk(towers)
    ]
    return torch.cat(grids, 2)


def colour(weights: Tensor) -> float:
    """Share of the energy of kernels (N, 3, h, w) that is colour and not grey, from 0 to 1.

    Section 6.1 of the AlexNet paper has one tower with colour-agnostic kernels, and one without.
    """
    chroma = weights - weights.mean(1, keepdim=True)
    return (chroma.square().sum() / weights.square().sum().clamp(min=1e-30)).item()


def inputs(images: Tensor) -> Tensor:
    """Images (N, C, H, W) or patches of them (N, V, C, H, W) as one, each with its own contrast."""
    large = images.flatten(0, -4).float()
    return make_grid(large, padding=2, normalize=True, scale_each=True, pad_value=1)


def mistakes(made: Sequence[tuple[Tensor, int, int]], names: Sequence[str]) -> Tensor:
    """Images (C, H, W) as one (3, H', W') uint8, below each its class and what it was taken for.

    Like Fig. 8 of the LeNet-5 paper.
    """
    side, gap, columns = 64, 28, 12  # pixels, and images in a row
    rows = -(-len(made) // columns)
    width, height = (gap + count * (side + gap) for count in (columns, rows))
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for number, (image, label, answer) in enumerate(made):
        left, top = (gap + place * (side + gap) for place in reversed(divmod(number, columns)))
        low, high = image.min(), image.max()
        tile = to_pil_image(((image - low) / (high - low).clamp(min=1e-9)).float())
        picture.paste(tile.resize((side, side), Image.Resampling.BOX), (left, top))
        words = f"{names[label]:.12}\n-> {names[answer]:.12}"
        draw.text((left, top + side + 1), words, fill="black", spacing=1)
    return pil_to_tensor(picture)


def confusion(counts: Tensor, names: Sequence[str]) -> str:
    """How many images of each class (row) got which answer (column), as a Markdown table."""
    rows = [[name, *map(str, row)] for name, row in zip(names, counts.tolist(), strict=True)]
    return aligned([["class", *(f"-> {name}" for name in names)], *rows])


def confusion_figure(counts: Tensor, names: Sequence[str]) -> Any:
    """The same as a figure of matplotlib; the darker, the more, on a logarithmic scale."""
    from matplotlib.figure import Figure  # here, since it takes a second

    shades = counts.cpu().double().log1p().numpy()
    figure = Figure((8, 8), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shades, cmap="Blues")
    for row, line in enumerate(counts.tolist()):
        for column, count in enumerate(line):
            dark = shades[row, column] > shades.max() / 2
            axes.text(
                column, row, count or "", ha="center", va="center", color="w" if dark else "k"
            )
    axes.set_xticks(range(len(names)), names, rotation=45)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("answer")
    axes.set_ylabel("class")
    return figure

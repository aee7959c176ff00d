"""Figures of a run: inputs, kernels, feature maps, answers, confusion matrix and mistakes."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from classic_cnns import printable
from classic_cnns.report.markdown import markdown_table
from classic_cnns.report.results import MARKERS, drawn_text


def convolutions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Kernels (N, C, h, w) of more than a pixel, by layer, from the state_dict of a net.

    A layer that has a kernel for each pair of maps, like C3 of LeNet-5, has (N, 1, h, w).
    """
    found = {}
    for name, weight in state.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and weight.dim() in (3, 4) and weight.shape[-1] > 1:
            found[layer] = weight if weight.dim() == 4 else weight[:, None]
    return found


def towers_of(net: Any) -> int:
    """The number of towers of a net; one if its `towers` are something else, such as layers."""
    found = getattr(net, "towers", 1)
    return found if isinstance(found, int) else 1


def kernels(weights: Tensor, towers: int) -> Tensor:
    """Kernels (N, C, h, w) as an image (3, H, W) in 0 to 1, the towers side by side.

    Like Fig. 3 of the AlexNet paper. Each kernel has its own contrast. Three channels are drawn as
    RGB, others by their mean: zero is grey, negative is darker. A weight is four pixels wide.
    """
    span = None
    if weights.shape[1] != 3:
        weights, span = weights.mean(1, keepdim=True), (-1, 1)
        weights = weights / weights.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-30)
    large = weights.repeat_interleave(4, 2).repeat_interleave(4, 3)
    columns = max(6, int((len(large) / towers) ** 0.5))
    grids = [
        make_grid(tower, columns, 4, True, value_range=span, scale_each=True, pad_value=1)
        for tower in large.chunk(towers)
    ]
    return torch.cat(grids, 2)


def colour(weights: Tensor) -> float:
    """The share, 0 to 1, of the energy of kernels (N, 3, h, w) that is colour and not grey.

    In section 6.1 of the AlexNet paper the kernels of one tower are colour-agnostic, those of the
    other are not.
    """
    chroma = weights - weights.mean(1, keepdim=True)
    return (chroma.square().sum() / weights.square().sum().clamp(min=1e-30)).item()


def inputs(images: Tensor, columns: int = 8) -> Tensor:
    """Images (N, C, H, W) or patches (N, V, C, H, W) as a grid, each with its own contrast."""
    large = images.flatten(0, -4).float()
    return make_grid(large, columns, normalize=True, scale_each=True, pad_value=1)


def mistakes(
    made: Sequence[tuple[Tensor, int, int]], names: Sequence[str], shares: Sequence[float] = ()
) -> Tensor:
    """Images (C, H, W) as a grid (3, H', W') uint8, each with its class and the predicted class.

    Like Fig. 8 of the LeNet-5 paper. `shares` are the probabilities of the predicted classes.
    Names are cut where the next image begins.
    """
    import matplotlib  # here, since importing it takes a second

    # Its font has more letters than Pillow's.
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 10)
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
        share = f" {shares[number]:.0%}" if shares else ""
        for line, (own, after) in enumerate(((label, " →"), (answer, share))):
            name = f"{printable(names[own]):.40}"
            while font.getlength(name + after) > side + gap - 3:
                name = f"{name.removesuffix('…')[:-1]}…"
            draw.text((left, top + side + 12 * line), name + after, "black", font)
    return pil_to_tensor(picture)


def confusion(counts: Tensor, names: Sequence[str]) -> str:
    """The confusion matrix as a Markdown table: rows are true classes, columns predicted ones."""
    rows = [[name, *map(str, row)] for name, row in zip(names, counts.tolist(), strict=True)]
    return markdown_table([["class", *(f"-> {name}" for name in names)], *rows])


def confusion_figure(counts: Tensor, names: Sequence[str]) -> Any:
    """The confusion matrix as a matplotlib figure, shaded on a logarithmic scale."""
    names = list(map(drawn_text, names))
    shades = counts.cpu().double().log1p().numpy()
    figure = new_figure(8, 8)
    axes = figure.subplots()
    axes.imshow(shades, cmap="Blues")
    for row, line in enumerate(counts.tolist()):
        for column, count in enumerate(line):
            dark = shades[row, column] > 0.65 * shades.max()
            axes.text(
                column, row, count or "", ha="center", va="center", color="w" if dark else "k"
            )
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), names, **slanted if max(map(len, names)) > 3 else {})
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("answer")
    axes.set_ylabel("class")
    return figure


def new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # here, since importing it takes a second

    return Figure((width, height), layout="constrained")


def maps(
    image: Tensor, layers: dict[str, Tensor], bitmaps: Tensor | None, found: dict[str, float]
) -> Any:
    """The outputs of all layers for an image (C, H, W), one row each: maps (C, H, W) or units.

    Like Fig. 2 of the LeNet-5 paper. With `bitmaps` (10, 84), those of LeNet-5's RBF units, the
    last units are drawn as a bitmap too, above all ten. `found` are the probabilities of classes.
    """
    figure = new_figure(10, 1.1 * (len(layers) + 1 + (bitmaps is not None)))
    rows = {"input": image, **layers}
    if bitmaps is not None:
        last = list(rows)[-1]
        rows[last] = rows[last].reshape(1, 12, 7)
        rows["RBF"] = bitmaps.detach().reshape(-1, 12, 7)
    column = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, (name, values) in zip(column, rows.items(), strict=True):
        if values.dim() == 1 or values.shape[1:].numel() == 1:
            shown = values.flatten()[None]
            axes.imshow(shown.float().numpy(), cmap="gray", aspect="auto")
        else:
            grid = (
                values[None] if name == "input" and len(values) == 3 else values[:24].unsqueeze(1)
            )
            grid, columns = grid.float(), 24 if len(grid) <= 16 else 12
            picture = make_grid(grid, columns, normalize=True, scale_each=True, pad_value=0.5)
            axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        part = f"\n24 of {len(values)}" if len(values) > 24 and values[0].numel() > 1 else ""
        axes.set_ylabel(drawn_text(name, 30) + part, rotation=0, ha="right", va="center")
        axes.set_xticks([])
        axes.set_yticks([])
    shares = (f"{drawn_text(name)} {share:.1%}" for name, share in found.items())
    title = "    ".join(words.replace(" ", "\N{NO-BREAK SPACE}") for words in shares)
    lines = textwrap.fill(title, 80)  # broken between classes only
    figure.suptitle(lines.replace("\N{NO-BREAK SPACE}", " "))
    return figure


def answers(
    images: Tensor, labels: Sequence[str], best: Sequence[Mapping[str, float]], nearest: Tensor
) -> Any:
    """Images (N, C, H, W), their most probable classes as bars, and similar training images.

    Like Fig. 4 of the AlexNet paper: `nearest` (N, 6, C, H, W) are the training images with the
    most similar last hidden units. `best` are the probabilities of the classes to show, for each
    image; the true class, of `labels`, is red, and dark in print.
    """
    count = len(images)
    figure = new_figure(9, 1.1 * count)
    grid = figure.subplots(count, 3, width_ratios=[1, 3, 5], squeeze=False)
    grid[0, 1].set_title("most probable classes (true one: red)", fontsize="small")
    grid[-1, 1].set_xlabel("probability", fontsize="small")
    grid[0, 2].set_title("nearest training images in the last hidden layer", fontsize="small")
    for row, (label, found) in enumerate(zip(labels, best, strict=True)):
        show(grid[row, 0], images[row][None], 1)
        grid[row, 0].set_title(drawn_text(label), fontsize="small", loc="left")
        colors = ["tab:red" if name == label else "lightsteelblue" for name in found]
        grid[row, 1].barh(range(len(found)), list(found.values()), color=colors)
        grid[row, 1].set_yticks(range(len(found)), list(map(drawn_text, found)), fontsize="small")
        grid[row, 1].invert_yaxis()
        grid[row, 1].set_xlim(0, 1)
        grid[row, 1].tick_params("x", labelbottom=row == count - 1, labelsize="small")
        show(grid[row, 2], nearest[row], 6)
    return figure


def show(axes: Any, images: Tensor, columns: int) -> None:
    axes.imshow(inputs(images, columns).permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_axis_off()


def robustness(curves: dict[str, dict[str, tuple[list[float], list[float]]]]) -> Any:
    """Test error (0 to 1) against the strength of a change, one chart for each kind of change."""
    figure = new_figure(10, 7)
    for axes, (change, lines) in zip(figure.subplots(2, 2).flat, curves.items(), strict=True):
        for number, (name, (values, errors)) in enumerate(lines.items()):
            shares, marker = [100 * error for error in errors], MARKERS[number % len(MARKERS)]
            axes.plot(values, shares, marker=marker, ms=4, label=drawn_text(name, 30))
        axes.set_xlabel(change)
        axes.set_ylabel("test error in %")
        axes.set_ylim(0, 105 * max(0.01, *chain(*(errors for _, errors in lines.values()))))
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure


def save(image: Tensor, path: Path) -> Path:
    """Save an image (3, H, W), uint8 or in 0 to 1, as PNG; small ones enlarged for slides."""
    factor = max(1, 800 // max(image.shape[1:]))
    to_pil_image(image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)).save(path)
    return path


def save_figure(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    return path

"""Pictures of any size, mode and orientation, brought to the form of a data set's images."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from classic_cnns import UserError

PAGE = 20  # how much larger than a digit the page may be on which it stands
MOST = 80_000_000  # pixels of a picture; one that claims more is not decoded


def read_picture(
    source: Any, channels: int, side: int, digits: bool = False
) -> tuple[np.ndarray, dict[str, bool]]:
    """A picture as (channels, side, side) uint8, and whether it was `inverted` or `centred`.

    `source` is a path, a PIL image, or uint8: an array (H, W) or (H, W, C), a tensor (H, W) or
    (C, H, W). In shades of grey, data sets have bright figures on a dark ground: a picture with a
    bright border is inverted, and one that is not square gets dark borders. If they are `digits`,
    and the picture has another size, its ink is fitted and centred as that of MNIST was. Of a
    colour picture the middle square is taken, as in training. Raises UserError for what is no
    picture.
    """
    try:
        image = oriented(source, PAGE * side if digits else side)
        if channels == 3:
            return np.asarray(middle(flat(image, "RGB"), side)).transpose(2, 0, 1), {}
        pixels = np.asarray(flat(image, "L"))
        if inverted := has_bright_border(pixels):
            pixels = 255 - pixels
        if digits and image.size != (side, side):
            centred = fitted(pixels, side)
            if centred is not None:
                return centred[None], {"inverted": inverted, "centred": True}
        width, height = image.size
        if width != height:
            square = Image.new("L", (max(width, height),) * 2)
            place = (square.width - width) // 2, (square.width - height) // 2
            square.paste(Image.fromarray(pixels), place)
            pixels = np.asarray(square)
        if len(pixels) != side:
            square = Image.fromarray(pixels)
            pixels = np.asarray(square.resize((side, side), Image.Resampling.BILINEAR))
        return pixels[None], {"inverted": inverted, "centred": False}
    except UserError:
        raise
    except Exception as error:  # a damaged file raises anything
        name = source if isinstance(source, (str, Path)) else type(source).__name__
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "its bytes are those of no picture"
        if isinstance(error, Image.DecompressionBombError):
            reason = f"it claims more than {MOST:,} pixels"
        raise UserError(f"{name}: cannot be read: {reason}") from error


def oriented(source: Any, side: int) -> Image.Image:
    """As a camera's EXIF note has it turned; large JPEGs may come at a fraction of their size."""
    if isinstance(source, (str, Path)):
        with Image.open(source) as file:
            if file.width * file.height > MOST:
                raise Image.DecompressionBombError
            file.draft(None, (side, side))
            file.load()
            return ImageOps.exif_transpose(file)
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source)
    if isinstance(source, Tensor):
        source = source.cpu().numpy()
        source = source.transpose(1, 2, 0) if source.ndim == 3 else source
    if source.dtype != np.uint8:
        raise TypeError(f"pixels have to be uint8, 0 to 255, and are {source.dtype}")
    return Image.fromarray(source.squeeze(2) if source.shape[2:] == (1,) else source)


def flat(image: Image.Image, mode: str) -> Image.Image:
    """In the mode L or RGB; deep pixels are scaled to 8 bits, transparent ones shown on white."""
    if image.mode[0] in "IF":
        values = np.nan_to_num(np.asarray(image, np.float64)).clip(0)
        limits = (65535,) if image.mode[0] == "I" else (1, 255, 65535)
        top = next((limit for limit in limits if values.max() <= limit), values.max())
        image = Image.fromarray((values * (255 / top)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def has_bright_border(pixels: np.ndarray) -> bool:
    """Whether most of the border (H, W) and at least three corners are bright: the ground is."""
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    return bool((border_of(pixels) > 127).mean() > 0.5 and (corners > 127).sum() >= 3)


def border_of(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def fitted(pixels: np.ndarray, side: int) -> np.ndarray | None:
    """Bright ink (H, W) as MNIST's authors have it: uint8 (side, side); None without any ink.

    The ink is brought to a box of 20 x 20, if `side` is 28, and its centre of mass to the middle.
    """
    ground, top = int(np.median(border_of(pixels))), int(pixels.max())
    if ground == top:
        return None
    ink = pixels > ground + (top - ground) / 4
    parts = [np.nonzero(ink.any(axis))[0] for axis in (1, 0)]
    rows, columns = (slice(part[0], part[-1] + 1) for part in parts)
    image = Image.fromarray(pixels[rows, columns].clip(ground).astype(np.float32) - ground)
    longest = side * 5 // 7
    width, height = (max(1, round(longest * length / max(image.size))) for length in image.size)
    box = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    field = np.zeros((side, side), np.uint8)
    places = []
    for axis, length in ((1, height), (0, width)):
        centre = (box.sum(axis) * np.arange(length)).sum() / box.sum()
        places.append(min(max(round(side / 2 - centre), 0), side - length))
    top_row, left = places
    field[top_row : top_row + height, left : left + width] = box * (255 / box.max())
    return field


def middle(image: Image.Image, size: int) -> Image.Image:
    """The middle of an image whose shorter side is brought to `size`.

    Section 2 of K12, rounded as torchvision's Resize and CenterCrop do.
    """
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))

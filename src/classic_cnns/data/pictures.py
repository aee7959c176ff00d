"""Images of any size, mode and orientation, converted to the form of a data set's images."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import center_crop, resize

from classic_cnns import UserError, one_line

LARGEST_PAGE = 20  # a page may be this many times as large as the digit on it
MAX_PIXELS = 80_000_000  # pixels; of JPEGs after decoding at reduced size


class Form(NamedTuple):
    """The form of a data set's images: 1 or 3 channels, pixels a side, and whether of digits."""

    channels: int
    side: int
    digits: bool = False

    @property
    def bytes(self) -> int:
        """The size of an image in memory."""
        return self.channels * self.side**2


def read_picture(source: Any, form: Form) -> tuple[np.ndarray, dict[str, bool]]:
    """A picture as (channels, side, side) uint8, and which changes were made to it.

    `source` is a path, a PIL image, or uint8: an array (H, W) or (H, W, C), a tensor (H, W) or (C,
    H, W). Colour pictures are resized and cropped to the central square, as in training. Grey data
    sets have bright figures on a dark background: a picture with a bright border is `inverted`, and
    one that is not square is padded with dark borders. A picture of digits that has another size is
    `centred`: its ink is scaled and placed as in MNIST. Raises UserError if `source` is not a
    picture.
    """
    channels, side, digits = form
    try:
        if channels == 3:
            return decode(source, side).transpose(2, 0, 1), {}
        image = open_oriented(source, LARGEST_PAGE * side if digits else side)
        pixels = np.asarray(to_mode(image, "L"))
        if inverted := has_bright_border(pixels):
            pixels = 255 - pixels
        if digits and image.size != (side, side):
            centred = centred_ink(pixels, side)
            if centred is not None:
                return centred[None], {"inverted": inverted, "centred": True}
        longest = max(image.size)
        left, top = (-((longest - length) // 2) for length in image.size)
        square = Image.fromarray(pixels).crop((left, top, left + longest, top + longest))
        pixels = np.asarray(square.resize((side, side), Image.Resampling.BILINEAR))
        return pixels[None], {"inverted": inverted, "centred": False}
    except Exception as error:  # a damaged file can raise anything
        name = source if isinstance(source, (str, Path)) else type(source).__name__
        reason = getattr(error, "strerror", None) or one_line(error)[:160] or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "its bytes are those of no picture"
        if isinstance(error, Image.DecompressionBombError):
            reason = f"it claims more than {MAX_PIXELS:,} pixels"
        raise UserError(f"{name}: cannot be read: {reason}") from error


def open_oriented(source: Any, side: int) -> Image.Image:
    """An upright image; JPEGs of at least twice the size `side` are decoded at half size."""
    if isinstance(source, (str, Path)):
        with Image.open(source) as file:
            file.draft(None, (side, side))
            if file.width * file.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            file.load()
            ImageOps.exif_transpose(file, in_place=True)  # as viewers show it
            return file
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source)
    if isinstance(source, Tensor):
        source = source.cpu().numpy()
        source = source.transpose(1, 2, 0) if source.ndim == 3 else source
    if not isinstance(source, np.ndarray):
        raise TypeError("it has to be a path, a PIL image, an array or a tensor")
    if source.dtype != np.uint8:
        raise TypeError(f"pixels have to be uint8, 0 to 255, and are {source.dtype}")
    return Image.fromarray(source.squeeze(2) if source.shape[2:] == (1,) else source)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode L or RGB: deep pixels scaled to 8 bits, transparent ones on white."""
    if image.mode[0] in "IF":
        values = np.nan_to_num(np.asarray(image, np.float64)).clip(0)
        limits = (65535,) if image.mode[0] == "I" else (1, 255, 65535)
        top = next((limit for limit in limits if values.max() <= limit), values.max())
        image = Image.fromarray((values * (255 / top)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def has_bright_border(pixels: np.ndarray) -> bool:
    """Whether most of the border of (H, W) and at least three corners are bright."""
    corners = sum(pixels[row, column] > 127 for row in (0, -1) for column in (0, -1))
    return bool(corners >= 3 and (border_of(pixels) > 127).mean() > 0.5)


def border_of(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def centred_ink(pixels: np.ndarray, side: int) -> np.ndarray | None:
    """Bright ink (H, W) placed as in MNIST: (side, side) uint8; None if there is no ink.

    For `side` 28 the ink is scaled to fit 20 x 20 pixels, and its centre of mass is centred.
    """
    ground, top = int(np.median(border_of(pixels))), int(pixels.max())
    if ground == top:
        return None
    ink = pixels > ground + (top - ground) / 4
    darker = Image.fromarray(pixels.clip(ground).astype(np.float32) - ground)
    image = darker.crop(Image.fromarray(ink).getbbox())
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


def decode(source: Any, size: int) -> np.ndarray:
    """The centre of a picture after resizing its shorter side to `size`: (size, size, 3) uint8.

    As in section 2 of K12, in training, evaluation and prediction alike. `source` is as for
    `read_picture`; pictures in other modes are converted to RGB.
    """
    picture = open_oriented(source, size)
    if size**2 * max(picture.size) > MAX_PIXELS * min(picture.size):
        raise Image.DecompressionBombError  # a thin line, after resizing
    picture = resize(to_mode(picture, "RGB"), [size])
    return np.asarray(center_crop(picture, [size]))

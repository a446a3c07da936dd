"""Any image -> an RGB image, by one function for training, evaluation and chat."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from visualchat.images import ArchivedImage, ImageInput

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 64_000_000
"""Images that would open to more pixels than this are refused before they are decoded."""

MAX_ROW_PIXELS = 256_000_000
"""Dialogues whose images open to more pixels than this together are refused while they are decoded."""

MAX_ASPECT = 200
"""Images whose aspect ratio exceeds this are refused: scaled to a short side, they would become huge."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA")
"""What is read, known by the content whatever the file is called; formats that run programs (EPS) are not read."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes stored pixels upright, by EXIF's orientation."""

_NOTES = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""Where an image in memory keeps the notes that speak of its orientation."""


@dataclass(frozen=True)
class ScaledImage:
    """An image as it waits for its batch.

    Attributes:
        pixels: (3, height, width), at the encoder's size.
        key: Equal for equal images; empty if nothing compares it.
    """

    pixels: Tensor
    key: str = ""


def decode_image(source: ImageInput, name: str = "image") -> Image.Image:
    """The image as RGB: first frame, turned as its EXIF says, transparency on white, 16 bits scaled to 8.

    Args:
        source: An image in memory, a file's path, an encoded file's bytes, or an entry of an archive.
        name: What error messages call it; a path names itself.

    Raises:
        ValueError: The file is missing, no image, of none of `FORMATS`, damaged, or too large.
    """
    if isinstance(source, Path):
        name = f"image file {str(source)!r}"
    try:
        if isinstance(source, Image.Image):
            return _upright_rgb(source)
        if isinstance(source, Path) and not source.is_file():
            raise ValueError("it does not exist or is not a file")
        if isinstance(source, ArchivedImage):
            source = source.read()
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as image:
            return _upright_rgb(image)
    except UnidentifiedImageError:  # whose own text tells addresses of memory
        raise ValueError(
            f"{name} cannot be read as an image: cannot identify image file, expected one of {', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # PIL's decoders raise errors of many kinds on damaged files
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, at most {MAX_PIXELS} are allowed")
    if not width * height or max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"it has {width} x {height} pixels, a side may be at most {MAX_ASPECT} times the other")
    if image.format not in (None, "MPO", *FORMATS):  # MPO is a JPEG that holds further images
        raise ValueError(f"it is a {image.format} file, expected one of {', '.join(FORMATS)}")
    image.load()
    turn = _TURNS.get(_orientation(image))
    rgb = _to_rgb(image if turn is None else image.transpose(turn))
    for note in _NOTES:
        rgb.info.pop(note, None)  # else it would be turned again the next time
    return rgb


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1, upright, where nothing is said or the notes are damaged, which pixels survive."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of many kinds, as above
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any of PIL's modes.

    Raises:
        ValueError: The values are floating-point numbers, for which nothing says which is white.
    """
    if image.mode == "F":
        raise ValueError("it holds floating-point values, expected 1 to 16 bits a channel")
    if image.mode.startswith("I"):
        # 16-bit (or 32-bit holding 16-bit) grey: PIL's own conversion would clip it to white
        pixels = np.asarray(image).astype(np.float64)
        grey = (pixels / 257.0).round().clip(0, 255).astype(np.uint8)
        grey[pixels == image.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")

"""Any picture -> an RGB picture, by one function for training, evaluation and chat."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from visualchat.dialogue import ImageInput

MAX_PIXELS = 64_000_000
"""Pictures that would open to more pixels than this are refused before they are decoded."""


def decode_image(source: ImageInput, name: str = "image") -> Image.Image:
    """The picture as RGB: first frame, turned as its EXIF says, transparency on white, 16 bits scaled to 8.

    Args:
        source: A picture in memory, a file's path, or an encoded file's bytes.
        name: What error messages call it; a path names itself.

    Raises:
        ValueError: The file is missing, no picture, damaged, or too large.
    """
    if isinstance(source, Path):
        name = f"image file {str(source)!r}"
    try:
        if isinstance(source, Image.Image):
            return _upright_rgb(source)
        if isinstance(source, Path) and not source.is_file():
            raise ValueError("it does not exist or is not a file")
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            return _upright_rgb(image)
    except Exception as error:  # PIL's decoders raise errors of many kinds on damaged files
        raise ValueError(f"{name} cannot be read as a picture: {error}") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, at most {MAX_PIXELS} are allowed")
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any of PIL's modes."""
    if image.mode.startswith("I"):
        # 16-bit (or 32-bit holding 16-bit) grey: PIL's own conversion would clip it to white
        pixels = np.asarray(image).astype(np.float64) / 257.0
        return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")

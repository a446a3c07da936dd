"""An image in the terminal, as blocks of colour."""

from __future__ import annotations

from typing import Any

from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text


def image_in_blocks(image: Image.Image, columns: int = 32) -> Text:
    """An image for the terminal, two pixels a character."""
    most = 2 * columns  # rows of the tallest image: a taller one gets narrower
    columns = min(columns, max(1, most * image.width // image.height))
    rows = min(most, max(2, round(columns * image.height / image.width) // 2 * 2))
    pixels = image.resize((columns, rows)).load()
    assert pixels is not None
    text = Text()
    for y in range(0, rows, 2):
        for x in range(columns):
            text.append("▀", Style(color=_colour(pixels[x, y]), bgcolor=_colour(pixels[x, y + 1])))
        text.append("\n")
    return text


def _colour(pixel: Any) -> Color:
    red, green, blue = pixel
    return Color.from_rgb(red, green, blue)

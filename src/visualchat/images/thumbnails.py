"""Small files of images, for pages that show many of them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from visualchat.files import whole_file
from visualchat.html_page import SIDE
from visualchat.images.feature_store import image_key

_DRAWN = 128
"""Images of at most so many pixels on a side are kept exactly: they may be drawn."""


def thumbnail(image: Image.Image, folder: Path) -> str:
    """Leave a decoded image, at most `SIDE` pixels wide and high, in a folder.

    Returns:
        The file's name below the folder above, as a page there shows it; equal images share a file.
    """
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    drawn = max(image.size) <= _DRAWN
    name = f"{image_key(image)[:24]}.{'png' if drawn else 'jpg'}"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / name, synced=False) as draft:
            image.save(draft, "PNG" if drawn else "JPEG")
    return f"{folder.name}/{name}"

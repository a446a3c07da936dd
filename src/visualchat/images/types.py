"""What may stand for an image before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image


class ImageArchive(Protocol):
    """Many encoded images behind one name, such as a base64 file of gigabytes."""

    def read(self, key: str) -> bytes:
        """The encoded image of that key."""


@dataclass(frozen=True)
class ArchivedImage:
    """An image in an archive, read only when it is decoded."""

    archive: ImageArchive
    key: str

    def read(self) -> bytes:
        """The encoded file's bytes."""
        return self.archive.read(self.key)


ImageInput = Image.Image | Path | bytes | ArchivedImage
"""An image in memory, a file, an encoded file's bytes or an entry of an archive: all that
`visualchat.images.decode.decode_image` reads."""

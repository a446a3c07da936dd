"""What may stand for an image before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image


class ImageStore(Protocol):
    """Many encoded pictures behind one name, such as a base64 file of gigabytes."""

    def read(self, key: str) -> bytes:
        """The encoded picture of that key."""


@dataclass(frozen=True)
class StoredImage:
    """A picture in a store, read only when it is decoded."""

    store: ImageStore
    key: str

    def read(self) -> bytes:
        """The encoded file's bytes."""
        return self.store.read(self.key)


ImageInput = Image.Image | Path | bytes | StoredImage
"""A picture in memory, a file, an encoded file's bytes or a place in a store: all that
`visualchat.images.decode.decode_image` reads."""

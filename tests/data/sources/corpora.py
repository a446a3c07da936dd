"""What the tests of sources share: real pictures, and a data root to fill."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from visualchat.images.decode import decode_image

IMAGE = object()
"""An image slot in `expect`."""

SLOT = 4  # tokens of an image


def jpeg(shade: int, form: str = "JPEG") -> bytes:
    """A real encoded picture that can be told by its shade."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (shade, 255 - shade, 128)).save(buffer, form)
    return buffer.getvalue()


def shade_of(image) -> int:
    """The shade that `jpeg` was given, but for what JPEG loses."""
    return round(float(np.asarray(decode_image(image))[..., 0].mean()))


@dataclass(frozen=True)
class Corpus:
    """A data root that a test fills."""

    root: Path

    def write(self, name: str, content) -> Path:
        """Bytes and texts as they are, anything else as JSON."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes | str):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def jpeg(self, name: str, shade: int) -> Path:
        return self.write(name, jpeg(shade))

    def lines(self, name: str, rows) -> Path:
        return self.write(name, "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


def encoded(shade: int, form: str = "JPEG") -> str:
    return base64.b64encode(jpeg(shade, form)).decode()

"""What a hostile input is, and how corpora around one are written."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from visualchat.data.sources import Messages, Source
from visualchat.dialogue import Dialogue

LIMIT = 700
"""Tokens that a dialogue may have in these tests."""

RED, GREEN, BLUE = (220, 20, 30), (20, 200, 40), (30, 40, 210)


@dataclass(frozen=True)
class Case:
    """A hostile input.

    Attributes:
        what: The input in words.
        outcome: What becomes of it in words.
        stage: `trains`, `bad row` or `unreadable file`.
        make: Writes it into a folder and gives the source that reads it.
        match: What the error says, as a regular expression.
        verify: For what trains: given the dialogue, the processor and its decoded pictures, asserts what is promised.
    """

    what: str
    outcome: str
    stage: Literal["trains", "bad row", "unreadable file"]
    make: Callable[[Path], Source]
    match: str = ""
    verify: Callable[[Dialogue, Any, list[Image.Image]], None] | None = None


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def user(*content: Any) -> dict[str, Any]:
    items = [{"type": "text", "text": item} if isinstance(item, str) else item for item in content]
    return {"role": "user", "content": items}


def answer(text: Any = "An answer.") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def image(name: str) -> dict[str, str]:
    return {"type": "image", "path": name}


def lines(*rows: Any) -> Callable[[Path], Source]:
    """A source of these rows; texts are lines as they are."""

    def make(folder: Path) -> Source:
        Image.new("RGB", (16, 16), RED).save(folder / "red.png")
        said = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        (folder / "rows.jsonl").write_text("\n".join(said), encoding="utf-8")
        return Messages(folder, ["rows.jsonl"], on_error="skip")

    return make


def talk(*messages: Any, **fields: Any) -> Callable[[Path], Source]:
    return lines({"messages": list(messages), **fields})


def picture(name: str, data: bytes | Callable[[Path], object]) -> Callable[[Path], Source]:
    """A question about one image file of this content."""

    def make(folder: Path) -> Source:
        if callable(data):
            data(folder / name)
        else:
            (folder / name).write_bytes(data)
        return talk(user(image(name), "What is it?"), answer())(folder)

    return make


def blocks(*colours: tuple[int, int, int]) -> Image.Image:
    """Areas of one colour side by side, each 16 pixels square."""
    return Image.fromarray(np.array([colours], np.uint8).repeat(16, axis=0).repeat(16, axis=1))

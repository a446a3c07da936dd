"""Messages in Hugging Face's chat format -> `Dialogue`.

[{"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is it?"}]},
 {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from visualchat.dialogue import Content, Dialogue, ImageInput, Turn


def dialogue_from_messages(messages: Sequence[Mapping[str, Any]], id: str = "messages") -> Dialogue:
    """The dialogue that alternating user and assistant messages form, after at most one system message.

    Raises:
        ValueError: A role is unknown or out of turn, or an item of content cannot be read; the message is named.
    """
    turns: list[Turn] = []
    content: tuple[Content, ...] | None = None
    system: str | None = None
    for number, message in enumerate(messages, start=1):
        name = f"{id}, message {number}"
        if not isinstance(message, Mapping):
            raise ValueError(f"{name}: expected a mapping with role and content, found {message!r:.100}")
        role = message.get("role")
        items = _items(message.get("content"), name)
        if role == "system" and number == 1:
            system = _text_only(items, name)
        elif role == "user" and content is None:
            content = items
        elif role == "assistant" and content is not None:
            turns.append(Turn(content, _text_only(items, name)))
            content = None
        else:
            expected = "assistant" if content is not None else "user"
            raise ValueError(f"{name}: expected role {expected!r}, found {role!r}")
    if content is not None:
        turns.append(Turn(content))
    return Dialogue(tuple(turns), id, system)


def _items(content: Any, name: str) -> tuple[Content, ...]:
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, Sequence):
        raise ValueError(f"{name}: content must be a text or a list of items, found {type(content).__name__}")
    return tuple(_item(item, f"{name}, item {number}") for number, item in enumerate(content, start=1))


def _item(item: Any, name: str) -> Content:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == "text" and isinstance(item.get("text"), str):
        return item["text"]
    if kind == "image":
        for key in ("image", "path", "bytes", "base64", "url"):
            if item.get(key) is not None:
                return _image(key, item[key], name)
    raise ValueError(
        f'{name}: expected {{"type": "text", "text": ...}} or {{"type": "image"}} with one of image, path, bytes, '
        f"base64 or url, found {item!r:.200}"
    )


def _image(key: str, value: Any, name: str) -> ImageInput:
    if isinstance(value, Image.Image | Path | bytes):
        return value
    if isinstance(value, str) and key in ("image", "path"):
        return Path(value)
    if isinstance(value, str) and key == "url":
        head, comma, value = value.partition(",")
        if not (comma and head.startswith("data:image/") and head.endswith(";base64")):
            raise ValueError(
                f"{name}: only data:image/...;base64 URLs are read, nothing is fetched; found {head!r:.100}"
            )
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except ValueError as error:  # binascii.Error is one, too
            raise ValueError(f"{name}: {key} is not valid base64: {error}") from error
    raise ValueError(f"{name}: cannot read an image from {key} of type {type(value).__name__}")


def _text_only(items: tuple[Content, ...], name: str) -> str:
    if not all(isinstance(item, str) for item in items):
        raise ValueError(f"{name}: only user messages may hold images")
    return "".join(str(item) for item in items)

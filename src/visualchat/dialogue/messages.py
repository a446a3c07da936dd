"""Messages in Hugging Face's chat format, or OpenAI's -> `Dialogue`.

[{"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is it?"}]},
 {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from visualchat.dialogue import Content, Dialogue, Turn
from visualchat.images import ImageInput
from visualchat.images.inputs import decode_base64, image_input


def dialogue_from_messages(messages: Sequence[Mapping[str, Any]], id: str = "messages") -> Dialogue:
    """The dialogue that user and assistant messages form, after at most one system message.

    User messages in a row are one question.

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
        elif role == "user":
            content = items if content is None else _joined(content, items)
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
    if kind == "image_url" and item.get("image_url") is not None:
        address = item["image_url"]
        return image_input(address.get("url") if isinstance(address, Mapping) else address, name)
    if kind == "image":
        for key in ("image", "path", "bytes", "base64", "url"):
            if item.get(key) is not None:
                return _image(key, item[key], name)
    raise ValueError(
        f'{name}: expected {{"type": "text", "text": ...}} or {{"type": "image"}} with one of image, path, bytes, '
        f"base64 or url, found {item!r:.200}"
    )


def _image(key: str, value: Any, name: str) -> ImageInput:
    if key == "base64" and isinstance(value, str):
        return decode_base64(value, name)
    return image_input(value, name)


def _joined(first: tuple[Content, ...], second: tuple[Content, ...]) -> tuple[Content, ...]:
    """Two messages of a user as one: words that would meet stand on lines of their own."""
    meet = first and second and isinstance(first[-1], str) and isinstance(second[0], str)
    return (*first, "\n", *second) if meet else (*first, *second)


def _text_only(items: tuple[Content, ...], name: str) -> str:
    if not all(isinstance(item, str) for item in items):
        raise ValueError(f"{name}: only user messages may hold images")
    return "".join(str(item) for item in items)

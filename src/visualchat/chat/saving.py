"""A conversation in a folder: its text, its images as PNG, and what a session needs to continue it exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from visualchat.dialogue import Turn
from visualchat.dialogue.messages import dialogue_from_messages
from visualchat.files import whole_file
from visualchat.images.decode import decode_image

DIALOGUE, SESSION = "dialogue.jsonl", "session.json"

SETTINGS: dict[str, tuple[type, ...]] = {
    "max_new_tokens": (int,),
    "temperature": (float, int),
    "stop": (list,),
    "seed": (int, type(None)),
    "drop_oldest": (bool,),
}


@dataclass(frozen=True)
class Saved:
    """What a folder keeps of a session.

    Attributes:
        turns: Answered rounds.
        said: The tokens of each answer, with what ends it.
        settings: Arguments of `ChatSession` by name.
        drawn: The state of the generator that it samples with; None where it has none of its own.
    """

    turns: tuple[Turn, ...]
    said: list[list[int]]
    settings: dict[str, Any]
    drawn: Tensor | None


def save_conversation(saved: Saved, folder: Path) -> None:
    """Write the folder: `dialogue.jsonl` as `data/source=messages` reads it, its images, and `session.json`.

    Raises:
        ValueError: There is nothing to keep, or the folder is not empty.
    """
    if not saved.turns:
        raise ValueError("there is nothing to save yet")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; choose another one")
    folder.mkdir(parents=True, exist_ok=True)
    messages: list[dict[str, Any]] = []
    number = 0
    for turn in saved.turns:
        content: list[dict[str, str]] = []
        for part in turn.content:
            if isinstance(part, Image.Image):
                number += 1
                part.save(folder / f"image-{number}.png")
                content.append({"type": "image", "path": f"image-{number}.png"})
            else:
                content.append({"type": "text", "text": str(part)})
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": turn.answer})
    drawn = None if saved.drawn is None else bytes(saved.drawn.tolist()).hex()
    session = {"settings": saved.settings, "answer_ids": saved.said, "generator": drawn}
    for name, record in ((DIALOGUE, {"messages": messages}), (SESSION, session)):
        with whole_file(folder / name) as draft:
            draft.write_text(json.dumps(record) + "\n", encoding="utf-8")


def load_conversation(folder: Path) -> Saved:
    """Read what `save_conversation` wrote; an answer whose text was edited since is taken as it is now.

    Raises:
        ValueError: A file is missing or damaged, or an image is not one of the folder's; it is named.
    """
    for name in (DIALOGUE, SESSION):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a saved conversation: it has no {name}")
    messages, session = (_read(folder / name) for name in (DIALOGUE, SESSION))
    dialogue = dialogue_from_messages([_with_image(message, folder) for message in messages["messages"]], str(folder))
    if any(turn.answer is None for turn in dialogue.turns):
        raise ValueError(f"{folder / DIALOGUE}: the last question has no answer")
    turns = tuple(Turn(tuple(_decoded(part) for part in turn.content), turn.answer) for turn in dialogue.turns)
    said = session["answer_ids"]
    if len(said) != len(turns):
        raise ValueError(f"{folder / SESSION}: expected answer_ids of {len(turns)} rounds, found {len(said)}")
    settings = session["settings"]
    for name, kinds in SETTINGS.items():
        if not isinstance(settings.get(name), kinds):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ValueError(f"{folder / SESSION}: setting {name} must be {expected}, found {settings.get(name)!r}")
    drawn = session["generator"]
    state = None if drawn is None else torch.tensor(list(bytes.fromhex(drawn)), dtype=torch.uint8)
    return Saved(turns, said, {name: settings[name] for name in SETTINGS}, state)


def _read(path: Path) -> dict[str, Any]:
    """The one JSON object of a file, with the fields that it must have."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    fields = {DIALOGUE: ("messages",), SESSION: ("settings", "answer_ids", "generator")}[path.name]
    if not isinstance(found, dict) or not all(name in found for name in fields):
        raise ValueError(f"{path}: expected one JSON object with {', '.join(fields)}")
    return found


def _with_image(message: Any, folder: Path) -> Any:
    """A message whose images are read from the folder alone."""
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), Sequence):
        return message  # refused by its reader, by name
    content = message["content"]
    return message if isinstance(content, str) else {**message, "content": [_item(item, folder) for item in content]}


def _item(item: Any, folder: Path) -> Any:
    if not isinstance(item, Mapping) or item.get("type") != "image":
        return item
    name = str(item.get("path"))
    if name != Path(name).name:
        raise ValueError(f"{folder / DIALOGUE}: image {name!r} must be a file of this folder")
    return {"type": "image", "image": decode_image(folder / name)}


def _decoded(part: Any) -> Any:
    """Text as it is, an image as RGB."""
    return part if isinstance(part, str) else decode_image(part)

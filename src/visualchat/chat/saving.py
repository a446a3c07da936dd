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
from visualchat.engine.request import check_settings
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

FIELDS: dict[str, dict[str, type | None]] = {
    DIALOGUE: {"messages": list},
    SESSION: {"settings": dict, "answer_ids": list, "generator": None},
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
        OSError: It cannot be written; nothing of it is left.
    """
    if not saved.turns:
        raise ValueError("there is nothing to save yet")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; choose another one")
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _write(saved, folder)
    except BaseException as error:  # a full disk, or Ctrl-C
        for path in folder.iterdir():
            path.unlink()
        if new:
            folder.rmdir()
        if isinstance(error, OSError):  # which need not tell where
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise


def _write(saved: Saved, folder: Path) -> None:
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
    if dialogue.system is not None:
        raise ValueError(f"{folder / DIALOGUE}: a session has no system message of its own, expected none")
    if any(turn.answer is None for turn in dialogue.turns):
        raise ValueError(f"{folder / DIALOGUE}: the last question has no answer")
    turns = tuple(Turn(tuple(_decoded(part) for part in turn.content), turn.answer) for turn in dialogue.turns)
    said = session["answer_ids"]
    if len(said) != len(turns) or not all(type(ids) is list and all(type(id) is int for id in ids) for ids in said):
        raise ValueError(
            f"{folder / SESSION}: expected answer_ids of {len(turns)} rounds, a list of whole numbers each"
        )
    try:
        settings, drawn = _settings(session["settings"]), _generator_state(session["generator"])
    except ValueError as error:
        raise ValueError(f"{folder / SESSION}: {error}") from error
    return Saved(turns, said, settings, drawn)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Those of a session, each of the right kind and in its range."""
    for name, kinds in SETTINGS.items():
        if type(given.get(name)) not in kinds:
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ValueError(f"setting {name} must be {expected}, found {given.get(name)!r}")
    if not all(isinstance(text, str) for text in given["stop"]):
        raise ValueError(f"setting stop must be a list of texts, found {given['stop']!r}")
    check_settings(given["max_new_tokens"], given["temperature"], given["stop"], seed=given["seed"])
    return {name: given[name] for name in SETTINGS}


def _generator_state(written: Any) -> Tensor | None:
    """The state of a generator that was written as hexadecimal digits."""
    if written is None:
        return None
    try:
        state = torch.tensor(list(bytes.fromhex(written)), dtype=torch.uint8)
        torch.Generator().set_state(state)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"generator is not the state of one: {error}") from error
    return state


def _read(path: Path) -> dict[str, Any]:
    """The one JSON object of a file, with the fields that it must have."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    fields = FIELDS[path.name]
    if not isinstance(found, dict) or not all(name in found for name in fields):
        raise ValueError(f"{path}: expected one JSON object with {', '.join(fields)}")
    for name, kind in fields.items():
        if kind is not None and type(found[name]) is not kind:
            raise ValueError(f"{path}: {name} must be a {kind.__name__}, found {found[name]!r:.100}")
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

"""Where dialogues come from: what a data set is made of, told of any sequence of dialogues.

Sources, compositions and mixtures know it of themselves; of a plain list all there is to tell is the number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from visualchat.data.progress import watched
from visualchat.dialogue import Caption, Dialogue
from visualchat.images import ImageInput
from visualchat.images.decode import decode_image
from visualchat.images.feature_store import image_key

SourceRow = tuple[str, int]
"""A source's name and the index of a dialogue in it."""

Origin = tuple[Sequence[Dialogue], int]
"""A source itself and the index of a dialogue in it."""


@runtime_checkable
class Traced(Protocol):
    """A data set that knows where its dialogues come from."""

    def place(self, index: int) -> str:
        """Where the rows of dialogue `index` lie, in words."""

    def rows_in(self, index: int) -> tuple[Origin, ...]:
        """The dialogues of sources that dialogue `index` is made of."""


@runtime_checkable
class Digested(Protocol):
    """A data set that knows a hash of its content."""

    def digest(self) -> str:
        """A hash (hex): equal where the content is."""


def place_of(dialogues: Sequence[Dialogue], index: int) -> str:
    """Where dialogue `index` comes from, in words."""
    return dialogues.place(index) if isinstance(dialogues, Traced) else f"dialogue {index}"


def rows_in(dialogues: Sequence[Dialogue], index: int) -> tuple[Origin, ...]:
    """The dialogues of sources that dialogue `index` is made of; none where that is not known."""
    return dialogues.rows_in(index) if isinstance(dialogues, Traced) else ()


def digest_of(dialogues: Sequence[Dialogue]) -> str:
    """A hash (hex) of all dialogues: of the rows that a source read, or of every word and image of a plain list."""
    if isinstance(dialogues, Digested):
        return dialogues.digest()
    content = hashlib.sha256()
    for index in watched(range(len(dialogues)), "reading all dialogues", len(dialogues)):
        try:
            told = _told(dialogues[index])
        except ValueError:
            told = ["a bad row"]
        content.update(repr(told).encode("utf-8", "surrogatepass"))
    return content.hexdigest()


def _told(dialogue: Dialogue) -> list[object]:
    """All words and images of a dialogue."""
    told: list[object] = [dialogue.id, dialogue.system]
    for turn in dialogue.turns:
        told += [item.text if isinstance(item, Caption) else item for item in turn.content if _is_text(item)]
        told += [_key(image) for image in turn.images]
        told.append(turn.answer)
    return told


def _key(image: ImageInput) -> str:
    try:
        return image_key(decode_image(image))
    except ValueError:
        return "a damaged image"


def joint_digest(*parts: object) -> str:
    """A hash of several digests and settings."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _is_text(item: object) -> bool:
    return isinstance(item, str | Caption)

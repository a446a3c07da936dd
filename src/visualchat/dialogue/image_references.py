"""Words that name images by number ("the second image", "image 2"), and a dialogue whose numbers move."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from visualchat.dialogue import Content, Dialogue, Turn
from visualchat.dialogue.mentions import CARDINALS, ORDINALS
from visualchat.images import ImageInput

_THING = r"(?:image|picture|photo|photograph)"
_REFERENCE = re.compile(
    rf"\b(?P<ordinal>{'|'.join(ORDINALS)})(?P<space>\s+)(?={_THING}\b)"
    rf"|\b(?P<thing>{_THING}\s+#?)(?P<number>\d+|{'|'.join(CARDINALS)})\b",
    re.IGNORECASE,
)
_UNCLEAR = re.compile(
    rf"\b(?:{'|'.join((*ORDINALS, *CARDINALS))}|\d+|both|last|latter|former|previous|next|other|another|left|right|"
    r"pair|between|each|all|every|they|them|their|theirs|these|those|differ\w*|alike|common|"
    r"together|either|neither|any|images|pictures|photos|photographs)\b",
    re.IGNORECASE,
)
"""What may refer to an image by its position without a number; a text that holds one is left alone."""

_ORDERED = re.compile(
    rf"\b(?:{'|'.join((*ORDINALS, *CARDINALS[1:]))}|number one|\d+|last|latter|former|previous|next|other|another)\b"
    r"|(?<![\w-])(?:left|right)\b",
    re.IGNORECASE,
)
"""Of these what depends on the images' order; "both", "any" or "these" mean the same ones in any order."""


def renumber(text: str, number: Callable[[int], int], *, same_images: bool = False) -> str | None:
    """The text with every numbered reference to an image changed; None where a reference may go unseen.

    Args:
        text: Any words.
        number: The new number (from 1) of an old one.
        same_images: Whether the images only change places, so that words for several of them stay true.
    """
    if (_ORDERED if same_images else _UNCLEAR).search(_REFERENCE.sub("", text)):
        return None
    fits = True

    def change(match: re.Match[str]) -> str:
        nonlocal fits
        old = match["ordinal"] or match["number"]
        words = ORDINALS if match["ordinal"] else CARDINALS
        new = number(int(old) if old.isdigit() else words.index(old.lower()) + 1)
        if old.isdigit():
            return f"{match['thing']}{new}"
        if new > len(words):
            fits = False
            return match[0]
        word = words[new - 1].capitalize() if old[0].isupper() else words[new - 1]
        return f"{word}{match['space']}" if match["ordinal"] else f"{match['thing']}{word}"

    changed = _REFERENCE.sub(change, text)
    return changed if fits else None


def insert_image(dialogue: Dialogue, image: ImageInput, at: int) -> Dialogue | None:
    """The dialogue with an image inserted as number `at` + 1, later ones counted up in images and words.

    What an evaluation knows of its questions is left out: it speaks of the images as they were.

    Args:
        dialogue: With more than `at` images.
        image: Any image; no word speaks of it.
        at: How many images stand before it.

    Returns:
        The new dialogue; None where its words may refer to an image in a way that cannot be rewritten safely.
    """
    seen = 0
    turns: list[Turn] = []
    for turn in dialogue.turns:
        content: list[Content] = []
        for item in turn.content:
            if isinstance(item, str):
                changed = renumber(item, lambda old: old + (old > at))
                if changed is None:
                    return None
                content.append(changed)
                continue
            if seen == at:
                content.append(image)
            seen += 1
            content.append(item)
        answer = None if turn.answer is None else renumber(turn.answer, lambda old: old + (old > at))
        if answer is None and turn.answer is not None:
            return None
        turns.append(replace(turn, content=tuple(content), answer=answer, expected=None))
    return replace(dialogue, turns=tuple(turns)) if seen > at else None

"""Dialogues to begin with: drawn images of the tiny world, on which every model can try itself."""

from __future__ import annotations

from typing import Any

from visualchat.html_page import image_source
from visualchat.tiny.dialogues import Round, TinyDialogues
from visualchat.tiny.scenes import draw

COUNT = 3


def examples() -> list[dict[str, Any]]:
    """The rounds of some dialogues that no model was tuned on, whose later rounds bring images, too.

    A round has images, as data URLs, and a question.
    """
    found: list[dict[str, Any]] = []
    source = TinyDialogues("unseen", 1000)
    for index in range(len(source)):
        sketch = source.sketch(index)
        later = len(sketch.rounds) > 2 and sketch.rounds[0].scenes and sketch.rounds[-1].scenes
        if len(sketch.scenes) in (2, 3) and later:
            found.append({"rounds": [_round(part) for part in sketch.rounds]})
        if len(found) == COUNT:
            break
    return found


def _round(part: Round) -> dict[str, Any]:
    return {"images": [image_source(draw(scene)) for scene in part.scenes], "question": part.question.text}

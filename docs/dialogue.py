"""Draws the README's figure: a dialogue that nobody trained on, answered by the model of the latest run.

python docs/dialogue.py            draws docs/images/dialogue.svg
python docs/dialogue.py --model outputs/.../model --out figure.svg
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

from visualchat.chat import ChatSession
from visualchat.model import VisualChatProcessor
from visualchat.model.saved import load_model, saved_model
from visualchat.tiny.dialogues import Sketch, sketch_dialogue
from visualchat.tiny.scenes import draw

HELD_OUT = 400
"""Dialogues of seen compositions that every run on the tiny world is scored on (conf/evaluation/tiny.yaml)."""

WIDTH, MARGIN, GAP = 840, 16, 10
PICTURE, CAPTION, BUBBLE = 64, 18, 32
LETTER, PADDING = 7.8, 20  # a letter's mean width in a wide font of 14 pixels

HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    ' font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="14" fill="#1f2328">\n'
    '<rect width="100%" height="100%" rx="10" fill="#ffffff" stroke="#d0d7de"/>\n'
)


def chosen() -> Sketch:
    """The first held-out dialogue of three images and five rounds, each of which asks for something else."""
    for index in range(HELD_OUT):
        sketch = sketch_dialogue("validation", 0, index)
        kinds = {turn.question.kind for turn in sketch.rounds}
        if len(sketch.scenes) == 3 and len(sketch.rounds) == len(kinds) == 5:
            return sketch
    raise AssertionError("no held-out dialogue has three images and five kinds of questions")


def answered(sketch: Sketch, folder: Path) -> list[str]:
    """What a saved model answers, greedily, round by round."""
    session = ChatSession(load_model(folder), VisualChatProcessor.from_pretrained(folder), max_new_tokens=64)
    return ["".join(session.ask(turn.question.text, [draw(scene) for scene in turn.scenes])) for turn in sketch.rounds]


def figure(sketch: Sketch, answers: Sequence[str]) -> str:
    """The dialogue as SVG: pictures as they arrive, questions, and answers, the true one beside a wrong one."""
    parts, top, number = [], MARGIN, 0
    for turn, answer in zip(sketch.rounds, answers, strict=True):
        height = PICTURE + CAPTION if turn.scenes else BUBBLE
        for place, scene in enumerate(turn.scenes):
            number += 1
            parts.append(_picture(draw(scene), MARGIN + place * (PICTURE + GAP), top, number))
        line = top + (height - CAPTION - BUBBLE) // 2 if turn.scenes else top
        right = answer == turn.question.answer
        shown = answer if right else f"{answer} (true: {turn.question.answer})"
        left = 2 * MARGIN + PICTURE
        parts.append(_bubble(turn.question.text, left, line, "question", "#eef1f4"))
        parts.append(_bubble(shown, WIDTH - MARGIN - _width(shown), line, "answer", "#dafbe1" if right else "#ffebe9"))
        top += height + GAP
    return HEAD.format(width=WIDTH, height=top - GAP + MARGIN) + "\n".join(parts) + "\n</svg>\n"


def _picture(picture: Image.Image, left: int, top: int, number: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<image x="{left}" y="{top}" width="{PICTURE}" height="{PICTURE}" image-rendering="pixelated"'
        f' href="data:image/png;base64,{data}"/>\n'
        f'<text x="{left + PICTURE // 2}" y="{top + PICTURE + CAPTION - 4}" text-anchor="middle" font-size="12"'
        f' fill="#656d76">image {number}</text>'
    )


def _width(words: str) -> int:
    return round(LETTER * len(words)) + PADDING


def _bubble(words: str, left: int, top: int, role: str, colour: str) -> str:
    width = _width(words)
    return (
        f'<rect x="{left}" y="{top}" width="{width}" height="{BUBBLE}" rx="12" fill="{colour}"/>'
        f'<text class="{role}" x="{left + width // 2}" y="{top + 21}" text-anchor="middle">{escape(words)}</text>'
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a saved model; the newest under outputs/ by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images" / "dialogue.svg")
    options = parser.parse_args()
    sketch = chosen()
    options.out.write_text(figure(sketch, answered(sketch, saved_model(options.model))), encoding="utf-8")


if __name__ == "__main__":
    main()

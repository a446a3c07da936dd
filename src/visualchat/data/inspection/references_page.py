"""A page of references that are unsound or unclear, each within its dialogue."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from visualchat import html_page
from visualchat.data.inspection.references import Reference
from visualchat.dialogue import Caption, Content, Dialogue, Turn
from visualchat.dialogue.mentions import mentions
from visualchat.images.decode import decode_image

STYLE = """section{border:1px solid #ddd;border-radius:8px;padding:.6rem 1rem;margin:1rem 0}p,div{margin:.35rem 0}
img{max-height:128px;max-width:100%;border:1px solid #ccc}figure{display:inline-block;margin:.2rem .5rem .2rem 0}
figcaption,.kind{color:#888;font-size:.85em}mark{background:#ffd6d6}
td{padding:.1rem .5rem;text-align:right}td:first-child{text-align:left}
.label{font-weight:600}"""


@dataclass(frozen=True)
class Example:
    """A reference to show.

    Attributes:
        group: What it is of: a source, or a part of a blend.
        place: Where its dialogue comes from.
        dialogue: It stands in.
        reference: The mention and its verdict.
    """

    group: str
    place: str
    dialogue: Dialogue
    reference: Reference

    @property
    def said(self) -> str:
        """A sentence on it."""
        r = self.reference
        where = f"round {r.round}, {'answer' if r.answer else 'question'}"
        return (
            f"{r.verdict}: {r.mention.words!r} in {where}, where {r.shown} of {len(_images(self.dialogue))} were shown"
        )

    def as_json(self) -> dict[str, Any]:
        """What it says, for a file."""
        r = self.reference
        return {
            "of": self.group,
            "place": self.place,
            "round": r.round,
            "verdict": r.verdict,
            "words": r.mention.words,
            "said": self.said,
        }


def examples_page(table: Sequence[Sequence[str]], examples: Sequence[Example]) -> str:
    """The page.

    Args:
        table: Its rows, the heads first.
        examples: What to show, in order.
    """
    rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in table]
    parts = [f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"]
    group = None
    for example in examples:
        if example.group != group:
            group = example.group
            parts.append(f"<h2>{html.escape(group)}</h2>")
        parts.append(_section(example))
    return html_page.page("References to images", "\n".join(parts), STYLE)


def _section(example: Example) -> str:
    parts = [f"<section><p class=kind>{html.escape(example.place)}</p><p class=label>{html.escape(example.said)}</p>"]
    image = 0
    for number, turn in enumerate(example.dialogue.turns, start=1):
        marked = example.reference if example.reference.round == number else None
        shown = []
        for item in turn.content:
            image += not isinstance(item, str)
            shown.append(_words(item, marked, False) if isinstance(item, str) else _image(item, image))
        parts.append(f"<div><span class=label>Question:</span> {''.join(shown)}</div>")
        answer = _words(turn.answer or "", marked, True)
        parts.append(f"<div><span class=label>Answer:</span> {answer}</div>")
    return "".join(parts) + "</section>"


def _words(text: str, marked: Reference | None, answer: bool) -> str:
    """A stretch of words, the reference in it marked."""
    if marked is None or marked.answer != answer or marked.mention not in mentions(text):
        return html.escape(text)
    start = marked.mention.start
    stop = start + len(marked.mention.words)
    before, words, after = (html.escape(part) for part in (text[:start], text[start:stop], text[stop:]))
    return f"{before}<mark>{words}</mark>{after}"


def _image(item: Content, number: int) -> str:
    if isinstance(item, Caption):
        return f"[Image {number}: <i>{html.escape(item.text)}</i>] "
    assert not isinstance(item, str)
    try:
        source = html_page.image_source(decode_image(item))
    except ValueError as error:
        return f"[Image {number}: {html.escape(str(error))}] "
    return f'<figure><img src="{source}" alt="Image {number}"><figcaption>Image {number}</figcaption></figure>'


def _images(dialogue: Dialogue) -> list[Content]:
    return [item for turn in dialogue.turns for item in _of(turn)]


def _of(turn: Turn) -> list[Content]:
    return [item for item in turn.content if not isinstance(item, str)]

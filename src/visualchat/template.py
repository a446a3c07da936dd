"""Dialogue -> segments: the prompt of the paper's figure 3 (arXiv 2309.14327, section 4.1).

    <system>

    ### Image 1:
    <image>
    ### Image 2:
    <image>

    ### Question:
    <question>

    ### Answer:
    <answer><end of sequence>

Plain strings, no new special tokens (section 4.3). Images are numbered through the whole dialogue, from 1; an image
slot is structure, never text, so nothing that a user types can open one. A round's rendering depends on earlier rounds
only, so the rendering of k rounds is a prefix of that of k + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from visualchat.dialogue import Caption, Dialogue

PAPER_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True)
class TextSegment:
    """A stretch of text; `supervised` marks an answer, which is trained and followed by the end token."""

    text: str
    supervised: bool = False


@dataclass(frozen=True)
class ImageSegment:
    """The slot of image `index` (from 0) of `Dialogue.images`."""

    index: int


Segment = TextSegment | ImageSegment


def render(dialogue: Dialogue, system: str = PAPER_SYSTEM) -> tuple[Segment, ...]:
    """The dialogue as the paper's prompt; an open last turn ends with its "### Answer:" line.

    Images before the first word of a turn stand above the question, as in figure 3; an image between words stands, with
    its own label, where the user put it. `system` stands before the first turn unless the dialogue brings its own.
    """
    segments: list[Segment] = []
    system = system if dialogue.system is None else dialogue.system
    text = f"{system}\n\n" if system else ""
    image, label = 0, 0
    for turn in dialogue.turns:
        asked = False  # whether "### Question:" of this turn is written
        opened = False  # whether an image of this turn stands right before
        for item in turn.content:
            if isinstance(item, str):
                if not asked and not item.strip():
                    continue  # blank text before the first word, as message formats bring it
                if not asked:
                    text += "\n\n### Question:\n" if opened else "### Question:\n"
                elif opened:
                    text += "\n"
                text += item
                asked, opened = True, False
                continue
            text += "\n" if opened or asked else ""
            label += 1
            segments.append(TextSegment(f"{text}### Image {label}:\n"))
            text = ""
            if isinstance(item, Caption):
                segments.append(TextSegment(item.text))
            else:
                segments.append(ImageSegment(image))
                image += 1
            opened = True
        segments.append(TextSegment(f"{text}\n\n### Answer:\n"))
        text = ""
        if turn.answer is not None:
            segments.append(TextSegment(turn.answer, supervised=True))
    return tuple(segments)

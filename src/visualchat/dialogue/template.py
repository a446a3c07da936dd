"""Dialogue -> segments: the prompt of the paper's figure 3 (arXiv 2309.14327, section 4.1), or a chat model's own.

    <system>

    ### Image 1:
    <image>
    ### Image 2:
    <image>

    ### Question:
    <question>

    ### Answer:
    <answer><end of sequence>

Images are numbered through the whole dialogue, from 1; an image slot is structure, never text, so nothing that a user
types can open one. A round's rendering depends on earlier rounds only, so the rendering of k rounds is a prefix of that
of k + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from visualchat.dialogue import Caption, Content, Dialogue

PAPER_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True)
class TextSegment:
    """A stretch of text.

    Attributes:
        text: As it stands.
        supervised: Whether it is an answer, which is trained and followed by the end of an answer.
        special: Whether special tokens of the tokenizer spelled in it count: it is the template's own text, not user
            text.
        label: The number (from 1) of the image that it names, if it is the label before an image's slot.
    """

    text: str
    supervised: bool = False
    special: bool = False
    label: int | None = None


@dataclass(frozen=True)
class ImageSegment:
    """The slot of image `index` (from 0) of `Dialogue.images`; `number` (from 1) is what its label calls it."""

    index: int
    number: int


Segment = TextSegment | ImageSegment


@dataclass(frozen=True)
class Template:
    """The fixed texts of a prompt. The defaults are figure 3's: plain strings, no new special tokens (section 4.3).

    Attributes:
        special: Whether special tokens count in the fixed texts; never in user text.
        tokens: Strings that the tokenizer must know as special tokens.
        opening: Stands before the system text; `bare_opening` where there is no system text.
        after_system: Follows the system text.
        bare_opening: Opens a dialogue without system text.
        turn: Opens every turn but the first, before its images.
        question: Stands before the first word of a turn, after the images above it.
        answer: Stands before an answer.
        answer_prefix: Belongs to an answer, before its first word.
        end: Ends an answer, trained with it; None for the tokenizer's end token.
        add_bos: Whether the tokenizer's beginning-of-sequence token, where it has one, opens the dialogue.
        strip: Whether whitespace around a turn's words and around an answer is left out.
        label_behind: Whether an image's label stands behind it too, as text that sees the image and all before it.
        prefixes_space: Whether the tokenizer itself begins any text with a space (as LLaMA 2's does), so that a space
            between fixed text and words is left out; elsewhere the space before a word belongs to the word.
    """

    special: bool = False
    tokens: tuple[str, ...] = ()
    opening: str = ""
    after_system: str = "\n\n"
    bare_opening: str = ""
    turn: str = ""
    question: str = "### Question:\n"
    answer: str = "\n\n### Answer:\n"
    answer_prefix: str = ""
    end: str | None = None
    add_bos: bool = True
    strip: bool = False
    label_behind: bool = False
    prefixes_space: bool = False


PAPER = Template()
SPECIAL = Template(special=True, tokens=("### Image", "### Question:", "### Answer:"))
"""Figure 3 with its headings as new special tokens, the variant that section 4.3 tried and found worse."""
LABEL_BEHIND = Template(label_behind=True)
"""Figure 3 with a place behind each image where text can gather it, as the link tokens of KVLink (arXiv 2502.16002)."""


def label_text(number: int) -> str:
    """What stands before image `number`, counted from 1."""
    return f"### Image {number}:\n"


def text_behind(number: int, template: Template) -> str:
    """What stands right behind image `number`."""
    return f"\n{label_text(number).rstrip()}" if template.label_behind else ""


class _Writer:
    """Collects text, and closes a segment where its kind changes."""

    def __init__(self, template: Template) -> None:
        self.segments: list[Segment] = []
        self._special, self._prefixes_space = template.special, template.prefixes_space
        self._text, self._counts = "", False

    def fixed(self, text: str) -> None:
        """The template's own text."""
        self._add(text, self._special)

    def words(self, text: str) -> None:
        """Somebody's words."""
        if self._special and self._counts and self._text.endswith(" "):
            self._text = self._text[:-1]
            text = text if self._prefixes_space else f" {text}"
        self._add(text, False)

    def _add(self, text: str, special: bool) -> None:
        if text and special != self._counts:
            if self._prefixes_space and self._text:
                text = text.removeprefix(" ")
            self._close()
            self._counts = special
        self._text += text

    def _close(self) -> None:
        if self._text:
            self.segments.append(TextSegment(self._text, special=self._counts))
            self._text = ""

    def image(self, index: int, number: int) -> None:
        """An image under its label, which is a segment of its own: the same tokens whatever stands before it."""
        if self._prefixes_space:
            self._text = self._text.removesuffix(" ")
        self.segment(TextSegment(label_text(number), special=self._special, label=number))
        self.segment(ImageSegment(index, number))

    def segment(self, segment: Segment) -> None:
        """A segment of its own."""
        self._close()
        self.segments.append(segment)

    def close(self) -> tuple[Segment, ...]:
        """All segments."""
        self._close()
        return tuple(self.segments)


def render(dialogue: Dialogue, system: str = PAPER_SYSTEM, template: Template = PAPER) -> tuple[Segment, ...]:
    """The dialogue as a prompt; an open last turn ends where its answer would begin.

    Images before the first word of a turn stand above the question, as in figure 3; an image between words stands, with
    its own label, where the user put it. `system` stands before the first turn unless the dialogue brings its own.
    """
    out = _Writer(template)
    system = system if dialogue.system is None else dialogue.system
    if system:
        out.fixed(template.opening)
        out.words(system)
        out.fixed(template.after_system)
    else:
        out.fixed(template.bare_opening)
    image, label = 0, 0
    for number, turn in enumerate(dialogue.turns):
        if number:
            out.fixed(template.turn)
        asked = False  # whether a word of this turn is written
        opened = False  # whether an image of this turn stands right before
        for item in _stripped(turn.content) if template.strip else turn.content:
            if isinstance(item, str):
                if not asked and not item.strip():
                    continue  # blank text before the first word, as message formats bring it
                if not asked:
                    out.fixed("\n\n" + template.question if opened else template.question)
                elif opened:
                    out.fixed("\n")
                out.words(item)
                asked, opened = True, False
                continue
            label += 1
            out.fixed("\n" if opened or asked else "")
            if isinstance(item, Caption):
                out.fixed(label_text(label))
                out.segment(TextSegment(item.text))
            else:
                out.image(image, label)
                image += 1
            out.fixed(text_behind(label, template))
            opened = True
        out.fixed(template.answer)
        if turn.answer is not None:
            answer = turn.answer.strip() if template.strip else turn.answer
            out.segment(TextSegment(template.answer_prefix + answer, supervised=True))
    return out.close()


def _stripped(content: tuple[Content, ...]) -> list[Content]:
    """The items of a turn without whitespace at its beginning and end."""
    items = list(content)
    if isinstance(items[0], str):
        items[0] = items[0].lstrip()
    if isinstance(items[-1], str):
        items[-1] = items[-1].rstrip()
    return items

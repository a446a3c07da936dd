"""A prompt as one text, and back: what `apply_chat_template(tokenize=False)` gives and a processor's call takes.

Segments are tokenised one by one, so a text that is tokenised as a whole would become other tokens. It is therefore
read back into the dialogue it came from; writing that dialogue again must give the very same text, or it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from visualchat.dialogue import Content, Dialogue, Turn
from visualchat.dialogue.template import Segment, Template, TextSegment, label_text, render, text_behind
from visualchat.images import ImageInput

SLOT = "<image>"
"""Stands for an image in a text."""


def prompt_text(segments: Sequence[Segment], end: str, unfinished: bool = False) -> str:
    """The segments as one text, `end` after each answer but an unfinished last one."""
    parts = [s.text + (end if s.supervised else "") if isinstance(s, TextSegment) else SLOT for s in segments]
    text = "".join(parts)
    return text.removesuffix(end) if unfinished else text


def is_prompt(text: str, template: Template) -> bool:
    """Whether a text is a prompt already: it holds what stands before an answer."""
    return _mark(template.answer, template) in text


def question_content(text: str, images: Sequence[ImageInput], name: str) -> tuple[Content, ...]:
    """A user's words with images at their `SLOT`s, or above the words where there is none.

    Raises:
        ValueError: There are not as many slots as images.
    """
    if SLOT not in text:
        return (*images, text)
    words = text.split(SLOT)
    _check_count(len(words) - 1, len(images), name)
    content: list[Content] = []
    for before, image in zip(words[:-1], images, strict=True):
        content += [before, image] if before else [image]
    return (*content, words[-1]) if words[-1] else tuple(content)


def read_prompt(
    text: str, images: Sequence[ImageInput], *, template: Template, system: str, end: str, name: str
) -> tuple[Dialogue, bool]:
    """The dialogue whose prompt a text is, and whether its last answer is unfinished.

    Args:
        text: What `prompt_text` gave.
        images: Of its slots, in order.
        template: What it was rendered with.
        system: The text that stands before the first turn of a dialogue that brings none.
        end: As `prompt_text` was given.
        name: What error messages call it.

    Raises:
        ValueError: There are not as many slots as images, or the template does not write such a text.
    """
    _check_count(text.count(SLOT), len(images), name)
    for own_system, body in _openings(text, template, system):
        prompt = _dialogue(body, own_system, iter(images), template, end, name)
        if prompt is None:
            continue
        dialogue, unfinished = prompt
        if prompt_text(render(dialogue, system, template), end, unfinished) == text:
            return prompt
    raise ValueError(
        f"{name} holds {_mark(template.answer, template)!r} but is not a prompt of this template, found "
        f"{text[:200]!r}; expected what apply_chat_template(tokenize=False) gives, unchanged, or messages with "
        "tokenize=True"
    )


def _check_count(slots: int, images: int, name: str) -> None:
    if slots != images:
        raise ValueError(f"{name}: {slots} {SLOT} in the text, {images} images are given")


def _mark(fixed: str, template: Template) -> str:
    """A fixed text as it stands in a prompt: some tokenizers bring the spaces around it themselves."""
    return fixed.strip(" ") if template.prefixes_space else fixed


def _openings(text: str, template: Template, system: str) -> Iterator[tuple[str | None, str]]:
    """How a text may begin: the dialogue's own system text (None for the default), and what follows."""
    opening, after, bare = (
        _mark(t, template) for t in (template.opening, template.after_system, template.bare_opening)
    )
    if system and text.startswith(opening + system + after):
        yield None, text.removeprefix(opening + system + after)
    if text.startswith(opening):
        for match in re.finditer(re.escape(after), text):
            if match.start() > len(opening):
                yield text[len(opening) : match.start()], text[match.end() :]
    if text.startswith(bare):
        yield "", text.removeprefix(bare)


def _dialogue(
    body: str, system: str | None, images: Iterator[ImageInput], template: Template, end: str, name: str
) -> tuple[Dialogue, bool] | None:
    """The rounds of a prompt without its system text; None where they cannot be told."""
    heading, between = _mark(template.answer, template), end + _mark(template.turn, template)
    rounds = body.split(between)
    if not rounds[-1] and len(rounds) > 1:
        rounds[-2:] = [rounds[-2] + end]
    turns: list[Turn] = []
    unfinished = False
    for number, words in enumerate(rounds, start=1):
        asked, found, answer = words.partition(heading)
        last = number == len(rounds)
        if not found:
            return None
        if last:
            unfinished = bool(answer) and not answer.endswith(end)
        answer_words = answer.removesuffix(end).removeprefix(template.answer_prefix) if answer else None
        content = tuple(_content(asked, images, template, 1 + sum(len(turn.images) for turn in turns)))
        if not content:
            return None
        turns.append(Turn(content, answer_words))
    try:
        return Dialogue(tuple(turns), name, system), unfinished
    except ValueError:
        return None


def _content(text: str, images: Iterator[ImageInput], template: Template, number: int) -> Iterable[Content]:
    """The words and images of one question whose first image has that number."""
    asked = opened = False
    while text:
        mark = f"{label_text(number)}{SLOT}{text_behind(number, template)}"
        before, found, text = text.partition(mark)
        if found:
            before = before.removesuffix("\n") if before or asked or opened else before
        if before:
            lead = "\n" if asked else ("\n\n" + template.question if opened else template.question)
            yield before.removeprefix(lead) if opened or not asked else before
            asked, opened = True, False
        if found:
            if (image := next(images, None)) is None:
                return
            yield image
            number, opened = number + 1, True

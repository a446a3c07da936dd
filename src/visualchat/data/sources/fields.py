"""Reading one raw row: its fields with their types, its rounds, and the placeholders of its images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from visualchat.data.sources.json_text import BrokenRow
from visualchat.data.sources.rows import Reason, RejectedRowError
from visualchat.dialogue import Content, Turn

T = TypeVar("T")

PLACEHOLDER = "<image>"
"""What stands for an image in the texts of LLaVA and those who took its form."""


def as_mapping(row: Any) -> Mapping[str, Any]:
    """The row, if it is a JSON object."""
    if isinstance(row, dict):
        return row
    if isinstance(row, BrokenRow):
        raise RejectedRowError(Reason.JSON if row.is_json else Reason.FORM, row.detail)
    if not isinstance(row, Mapping):
        raise RejectedRowError(Reason.FORM, f"expected a JSON object, found {_shown(row)}")
    return row


def get_text(row: Mapping[str, Any], name: str, empty: Reason | None = None) -> str:
    """A field that must be text; where `empty` is given, text that is not blank."""
    value = row.get(name)
    if not isinstance(value, str):
        raise RejectedRowError(Reason.FORM, f"expected text in {name}, found {_shown(value)}")
    if "\0" in value:
        raise RejectedRowError(Reason.FORM, f"{name} holds a NUL character")
    if empty is not None and not value.strip():
        raise RejectedRowError(empty, f"{name} is {value!r}")
    return value


def is_text(value: str) -> bool:
    """Whether a text can be written down, as one with half of a surrogate pair cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def get_list(row: Mapping[str, Any], name: str) -> Sequence[Any]:
    """A field that must be a list."""
    value = row.get(name)
    if not isinstance(value, list | tuple):
        raise RejectedRowError(Reason.FORM, f"expected a list in {name}, found {_shown(value)}")
    return value


def get_id(row: Mapping[str, Any], name: str) -> str:
    """A field that must be a text or a whole number."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RejectedRowError(Reason.FORM, f"expected an id in {name}, found {_shown(value)}")
    return str(value)


def get_names(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A field with one text, a list of texts, or nothing; a text is one name, never a list of letters."""
    value = row.get(name)
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise RejectedRowError(Reason.FORM, f"expected a name or a list of names in {name}, found {_shown(value)}")
    return tuple(value)


def pair_rounds(messages: Sequence[Any], role: str, text: str, names: tuple[str, str]) -> list[tuple[str, str]]:
    """Messages as (question, answer) rounds.

    Args:
        messages: JSON objects.
        role: The field that says who speaks.
        text: The field with the words.
        names: What the user and the assistant are called.

    Raises:
        RejectedRowError: There is none, a role is unknown or out of turn, or the last question has no answer.
    """
    spoken: list[str] = []
    for number, message in enumerate(messages):
        entry = as_mapping(message)
        expected = names[number % 2]
        if entry.get(role) != expected:
            raise RejectedRowError(
                Reason.ROLE, f"message {number + 1}: expected {role} {expected!r}, found {_shown(entry.get(role))}"
            )
        spoken.append(get_text(entry, text))
    if len(spoken) < 2:
        raise RejectedRowError(Reason.NO_ANSWER, f"expected a question and an answer, found {len(spoken)} messages")
    if len(spoken) % 2:
        raise RejectedRowError(Reason.NO_ANSWER, f"{len(spoken)} messages: the last question has no answer")
    return list(zip(spoken[::2], spoken[1::2], strict=True))


def place_images(texts: Sequence[str], images: Sequence[Content], *, images_first: bool) -> list[tuple[Content, ...]]:
    """The content of each round, with images where placeholders are; without placeholders, at the dialogue's start.

    Args:
        texts: The questions.
        images: In the order of their placeholders.
        images_first: Whether an image moves to its round's start, as figure 3 has it, or stays between the words.

    Raises:
        RejectedRowError: There are placeholders, but not one for each image.
    """
    pieces = [text.split(PLACEHOLDER) if images else [text] for text in texts]
    placeholders = sum(len(split) - 1 for split in pieces)
    if placeholders not in (0, len(images)):
        raise RejectedRowError(
            Reason.PLACEHOLDERS,
            f"expected {len(images)} times {PLACEHOLDER} for {len(images)} images, found {placeholders}",
        )
    if not placeholders:
        return [(*(images if not number else ()), text.strip()) for number, text in enumerate(texts)]
    waiting = iter(images)
    return [arrange([(p, next(waiting)) for p in s[:-1]], s[-1], images_first=images_first) for s in pieces]


def arrange(pairs: Sequence[tuple[str, Content]], last: str, *, images_first: bool) -> tuple[Content, ...]:
    """The content of a round of words before each image and after the last."""
    if images_first:
        words = [piece for piece in (*(text.strip() for text, _ in pairs), last.strip()) if piece]
        return (*(image for _, image in pairs), join_words(words))
    content: list[Content] = []
    for text, image in pairs:
        content += [text.strip("\n"), image]
    content.append(last.strip("\n"))
    return tuple(item for item in content if not isinstance(item, str) or item.strip())


def join_words(pieces: Sequence[str]) -> str:
    """Stretches of words as one, without a space before a full stop or a comma."""
    text = ""
    for piece in pieces:
        text += piece if not text or piece[0] in ".,;:?!)" else f" {piece}"
    return text


def without_placeholder(answer: str) -> str:
    """The answer, which must not hold what stands for an image: it would be trained as text.

    Raises:
        RejectedRowError: It does.
    """
    if PLACEHOLDER in answer:
        raise RejectedRowError(Reason.ANSWER_PLACEHOLDER, f"an answer holds {PLACEHOLDER}, which only questions may")
    return answer


def turns(contents: Sequence[tuple[Content, ...]], answers: Sequence[str]) -> tuple[Turn, ...]:
    """Rounds of contents and answers.

    Raises:
        RejectedRowError: A question is blank.
    """
    rounds = tuple(Turn(content, answer.strip()) for content, answer in zip(contents, answers, strict=True))
    for number, turn in enumerate(rounds, start=1):
        if not turn.question.strip():
            raise RejectedRowError(Reason.EMPTY_QUESTION, f"round {number} has the question {turn.question!r}")
    return rounds


def choose(options: Sequence[T], id: str, seed: int) -> T:
    """One of the options, drawn by the row's id and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{id}".encode("utf-8", "surrogatepass")).digest()
    return options[int.from_bytes(digest[:8], "big") % len(options)]


def _shown(value: Any) -> str:
    shown = f"{value!r:.60}" if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return "nothing" if value is None else shown

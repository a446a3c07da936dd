"""A question of an evaluation with the model's answer: the line of `predictions.jsonl` that every score comes from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from visualchat.dialogue import Caption, Dialogue, Expected
from visualchat.dialogue.mentions import mentioned
from visualchat.generation.answer import Ended

Mode = Literal["teacher_forced", "free_running"]
"""What stands before a question: the true answers, or the model's own."""

REPLACED = "replaced"
"""The control that replaces an image, and the tag that tells the number of the image."""


@dataclass(frozen=True)
class Score:
    """What a metric makes of one answer.

    Attributes:
        value: 0 to 1.
        parsed: What the answer was read as; None where it cannot be read, which is wrong and counted.
    """

    value: float
    parsed: str | None


@dataclass(frozen=True)
class Prediction:
    """One question, and what the model answered.

    Attributes:
        column: Which model under which conditions, such as `tuned` or `blind`.
        mode: What stood before the question.
        part: Of the evaluation: `seen`, a source's name, a benchmark's.
        dialogue: The dialogue's id.
        round: From 1.
        kind: The question's; empty if unused.
        question: Its words.
        shown: Names of the files of the images that came with it, below the evaluation's folder.
        images: Of the whole dialogue, whether the model saw them or not.
        sent: Of these, how many were sent by then.
        distance: Rounds since the farthest image that the question is about was sent, or, where that is unknown, since
            the last image; None where no image was sent so far.
        references: Accepted answers, the true one first.
        options: What there is to choose from, A first; empty for an open question.
        about: The numbers of the images that the question is about, by the data or else its words; empty if unknown.
        tags: What else scores are split by.
        answer: The model's words.
        ended: How they ended.
        exact: Whether they are the true answer token for token, its end included.
        tokens: Of the true answer, its end included; None where free-running, as the next two.
        right: How many of them are the model's best token after the true ones before.
        loss: Nats, the sum over the true tokens.
        captions: What the data say of each image that came with the question; empty where they say nothing.
        option_losses: Nats of each option as the whole answer, where they were measured.
    """

    column: str
    mode: Mode
    part: str
    dialogue: str
    round: int
    kind: str
    question: str
    shown: tuple[str, ...]
    images: int
    sent: int
    distance: int | None
    references: tuple[str, ...]
    options: tuple[str, ...]
    about: tuple[int, ...]
    tags: Mapping[str, str]
    answer: str
    ended: Ended
    exact: bool
    tokens: int | None = None
    right: int | None = None
    loss: float | None = None
    captions: tuple[str, ...] = ()
    option_losses: tuple[float, ...] = field(default=())

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells the question from others: the same for every model and mode."""
        return self.part, self.dialogue, self.round


def questions(dialogue: Dialogue) -> list[dict[str, Any]]:
    """The fields of `Prediction` that the data give, for each round."""
    sent: list[int] = []  # the round of each image
    for number, turn in enumerate(dialogue.turns, start=1):
        sent += [number for item in turn.content if not isinstance(item, str)]
    facts = []
    for number, turn in enumerate(dialogue.turns, start=1):
        expected = turn.expected or Expected()
        assert turn.answer is not None
        assert all(1 <= image <= len(sent) for image in expected.about), (
            f"{dialogue.id}: {expected.about} of {len(sent)}"
        )
        so_far = [r for r in sent if r <= number]
        about = expected.about or tuple(n for n in mentioned(turn.question) if 1 <= n <= len(so_far))
        asked_of = [sent[image - 1] for image in about] or so_far[-1:]
        facts.append(
            {
                "dialogue": dialogue.id,
                "round": number,
                "kind": turn.kind,
                "question": " ".join(_words(item) for item in turn.content).strip(),
                "images": len(sent),
                "sent": len(so_far),
                "distance": number - min(asked_of) if asked_of else None,
                "references": (turn.answer, *expected.references),
                "options": expected.options,
                "about": about,
                "tags": dict(expected.tags),
                "captions": expected.captions,
            }
        )
    return facts


def _words(item: object) -> str:
    """Text as it is, the words of a caption, and nothing for an image."""
    return item if isinstance(item, str) else item.text if isinstance(item, Caption) else ""


def to_line(prediction: Prediction) -> str:
    """A prediction as a line of JSON."""
    return json.dumps(asdict(prediction), ensure_ascii=False, allow_nan=False) + "\n"


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "Mode": (str,),
    "Ended": (str,),
    "int": (int,),
    "bool": (bool,),
    "int | None": (int, type(None)),
    "float | None": (float, int, type(None)),
    "Mapping[str, str]": (dict,),
}


def from_line(line: str, place: str) -> Prediction:
    """The prediction of a line.

    Args:
        line: What `to_line` gave.
        place: The file and line, for messages.

    Raises:
        ValueError: It is something else.
    """
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} cannot be read: {error}") from error
    names = {f.name: str(f.type) for f in fields(Prediction)}
    if not isinstance(values, dict) or set(values) != set(names):
        found = ", ".join(sorted(values)) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{place}: expected a prediction with {', '.join(names)}; found {found:.200}")
    for name, kind in names.items():
        expected = _KINDS.get(kind, (list,))
        if not isinstance(values[name], expected) or (kind != "bool" and isinstance(values[name], bool)):
            raise ValueError(f"{place}: {name} must be {kind}, found {values[name]!r:.60}")
        if expected == (list,):
            values[name] = tuple(values[name])
    for name, known in (("mode", get_args(Mode)), ("ended", get_args(Ended))):
        if values[name] not in known:
            raise ValueError(f"{place}: {name} must be one of {', '.join(known)}, found {values[name]!r:.60}")
    return Prediction(**values)


def read_predictions(path: Path) -> list[Prediction]:
    """The predictions of a file.

    Raises:
        ValueError: A line is damaged; it is named.
    """
    with path.open(encoding="utf-8") as file:
        return [from_line(line, f"{path}, line {number}") for number, line in enumerate(file, start=1)]


def of(predictions: Iterable[Prediction], column: str, mode: Mode) -> list[Prediction]:
    """Those of one column and mode, in their order."""
    return [p for p in predictions if p.column == column and p.mode == mode]


def without(predictions: Sequence[Prediction], kinds: Sequence[str]) -> list[Prediction]:
    """Those of questions of other kinds than these."""
    return [p for p in predictions if p.kind not in kinds]

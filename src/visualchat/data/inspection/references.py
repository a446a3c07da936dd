"""Whether the images that dialogues speak of exist, have been shown by then, and are the ones that their rows meant.

What the authors of arXiv 2309.14327 suspected of their shuffled image numbers (section 5.2.4), as figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from visualchat.data.blend.origin import Origin, rows_in
from visualchat.data.workers import map_in_workers
from visualchat.dialogue import Caption, Dialogue, Turn
from visualchat.dialogue.mentions import Mention, mentions, without_numbers
from visualchat.images import ImageInput

Verdict = Literal["sound", "early", "missing", "wrong", "unclear", "quoted"]
"""`early`: shown only in a later round; `missing`: never shown; `wrong`: another image than the row meant that the
dialogue was composed of; `unclear`: several images may be meant; `quoted`: within quotation marks, not judged."""

UNSOUND: tuple[Verdict, ...] = ("early", "missing", "wrong")


@dataclass(frozen=True)
class Reference:
    """A mention of images in a dialogue.

    Attributes:
        round: From 1.
        answer: Whether it stands in the answer, not in the question.
        mention: Its words.
        verdict: What is to be said of it.
        images: The numbers of the images that are meant; none where that cannot be told.
        shown: Images shown by then.
        back: Rounds since the first of its images was sent; None without images.
    """

    round: int
    answer: bool
    mention: Mention
    verdict: Verdict
    images: tuple[int, ...]
    shown: int
    back: int | None


@dataclass(frozen=True)
class Look:
    """What was found in one dialogue.

    Attributes:
        references: In the order of its words.
        images: How many it shows.
        rows: Dialogues of sources that it is made of.
        newest: For each round the number of the newest image.
        reason: Why it cannot be read; empty for a sound one.
    """

    references: tuple[Reference, ...] = ()
    images: int = 0
    rows: int = 1
    newest: tuple[int, ...] = ()
    reason: str = ""

    @property
    def linked(self) -> bool:
        """Whether a round speaks of several images at once, or of one before the newest: what needs a memory."""
        return any(
            r.verdict == "sound" and (len(r.images) > 1 or (r.images and r.images[0] < self.newest[r.round - 1]))
            for r in self.references
        )


def looked_at(dialogues: Sequence[Dialogue], num_workers: int) -> Iterator[Look]:
    """What is found in each dialogue, in order; images are not decoded."""
    yield from map_in_workers(partial(_look, dialogues), range(len(dialogues)), num_workers)


def _look(dialogues: Sequence[Dialogue], index: int) -> Look:
    try:
        dialogue, origins = dialogues[index], rows_in(dialogues, index)
        meant = _Meant(dialogue, origins) if len(origins) > 1 else None
    except ValueError as error:
        return Look(reason=str(error))
    references = tuple(references_of(dialogue, meant))
    sent = _sent(dialogue)
    newest = tuple(sum(r <= number for r in sent) for number in range(1, len(dialogue.turns) + 1))
    return Look(references, len(sent), max(1, len(origins)), newest)


def references_of(dialogue: Dialogue, meant: _Meant | None = None) -> Iterator[Reference]:
    """The mentions of a dialogue with their verdicts.

    Args:
        dialogue: Any.
        meant: What its rows meant, where it is composed of rows.
    """
    sent = _sent(dialogue)
    for number, turn in enumerate(dialogue.turns, start=1):
        shown = sum(r <= number for r in sent)
        for place, (answer, text) in enumerate(_texts(turn)):
            for order, mention in enumerate(mentions(text)):
                verdict, images = judge(mention, sent, number)
                if meant is not None and verdict == "sound" and meant.another(number, place, order, images):
                    verdict = "wrong"
                back = number - min(sent[n - 1] for n in images) if images and verdict == "sound" else None
                yield Reference(number, answer, mention, verdict, images, shown, back)


def judge(mention: Mention, sent: Sequence[int], number: int) -> tuple[Verdict, tuple[int, ...]]:
    """The verdict on a mention, and the numbers of its images where these can be told.

    Args:
        mention: Of round `number`.
        sent: The round in which each image of the dialogue is sent.
        number: From 1.
    """
    if mention.quoted:
        return "quoted", ()
    shown = sum(r <= number for r in sent)
    if mention.count > shown or (mention.kind == "number" and min(mention.numbers, default=0) < 1):
        exists = min(mention.numbers, default=1) >= 1 and mention.count <= len(sent)
        return ("early" if exists else "missing"), ()
    latest = tuple(n for n, r in enumerate(sent, start=1) if r == max(s for s in sent if s <= number))
    everything = tuple(range(1, shown + 1))
    if mention.kind == "number":
        return "sound", mention.numbers
    if mention.kind == "other":
        return ("sound" if shown == 2 else "unclear"), ()
    for images in (everything, latest):
        if len(images) == mention.count:
            return "sound", images
    return "unclear", ()


def _sent(dialogue: Dialogue) -> list[int]:
    """The round in which each image, or the caption in its place, is sent."""
    return [n for n, turn in enumerate(dialogue.turns, start=1) for item in turn.content if not isinstance(item, str)]


def _texts(turn: Turn) -> list[tuple[bool, str]]:
    """The stretches of words of a round, and whether they are the answer."""
    asked = [(False, item) for item in turn.content if isinstance(item, str)]
    return asked if turn.answer is None else [*asked, (True, turn.answer)]


class _Meant:
    """Which images the rows meant that a dialogue is composed of.

    Args:
        dialogue: Composed of rows.
        origins: The rows.
    """

    def __init__(self, dialogue: Dialogue, origins: Sequence[Origin]) -> None:
        read = [(source, row, source[row]) for source, row in origins]
        rows = [(one, _identities(source, row, one.images)) for source, row, one in read]
        self._names: dict[Hashable, str] = {}
        for row, names in rows:
            for image, name in zip(row.images, names, strict=True):
                self._names.setdefault(_hashable(image), name)
        self._images = [self._names.get(_hashable(image), "") for image in dialogue.images]
        if any(isinstance(item, Caption) for turn in dialogue.turns for item in turn.content):
            rows = []  # captions have numbers, too, and no identity
        turns = [(words, means) for row, names in rows for words, means in _turns_of(row, names)]
        self._of_turns: list[list[list[tuple[str, ...]]] | None] = []
        for turn in dialogue.turns:
            said = _masked(turn)
            at = next((n for n, (words, _) in enumerate(turns) if words == said), None)
            self._of_turns.append(None if at is None else turns.pop(at)[1])

    def another(self, number: int, place: int, order: int, images: tuple[int, ...]) -> bool:
        """Whether a mention means other images than its row did; never where one of the two cannot be told."""
        means = self._of_turns[number - 1]
        if means is None or not images or not (names := means[place][order]):
            return False
        here = {self._images[n - 1] for n in images}
        return "" not in here and here != {*names}


def _turns_of(row: Dialogue, names: Sequence[str]) -> Iterator[tuple[list[str], list[list[tuple[str, ...]]]]]:
    """The words of each round of a row without their numbers, and the identities that each mention means."""
    sent = _sent(row)
    for number, turn in enumerate(row.turns, start=1):
        judged = [[judge(mention, sent, number) for mention in mentions(text)] for _, text in _texts(turn)]
        means = [[tuple(names[n - 1] for n in images) for _, images in of] for of in judged]
        yield _masked(turn), means


def _masked(turn: Turn) -> list[str]:
    return [without_numbers(text) for _, text in _texts(turn)]


def _identities(source: Any, row: int, images: Sequence[ImageInput]) -> Sequence[str]:
    """The identities of a row's images, by its source where that knows them."""
    names = source.entries[row].images if hasattr(source, "entries") else ()
    return names if len(names) == len(images) else [str(_hashable(image)) for image in images]


def _hashable(image: Any) -> Hashable:
    return image if isinstance(image, Hashable) else id(image)


@dataclass
class ReferenceTotals:
    """Sums over dialogues.

    Attributes:
        dialogues: Those that could be read.
        bad: Those that could not.
        images: Of all of them.
        named: Images that some sound reference means.
        several: Dialogues with two images or more.
        linked: Those of them in which a round speaks of several images or of one before the newest.
        verdicts: References by verdict.
        unsound: Dialogues with a reference that is early, missing or wrong.
        rounds: By round: references that are judged, and how many of them are unsound.
        back: Sound references by the rounds since their image.
    """

    dialogues: int = 0
    bad: int = 0
    images: int = 0
    named: int = 0
    several: int = 0
    linked: int = 0
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    unsound: int = 0
    rounds: dict[int, Counter[str]] = field(default_factory=dict)
    back: Counter[int] = field(default_factory=Counter)

    def add(self, look: Look) -> None:
        """Count a dialogue."""
        if look.reason:
            self.bad += 1
            return
        self.dialogues += 1
        self.images += look.images
        self.named += len({n for r in look.references if r.verdict == "sound" for n in r.images})
        self.several += look.images > 1
        self.linked += look.images > 1 and look.linked
        self.verdicts.update(r.verdict for r in look.references)
        self.unsound += any(r.verdict in UNSOUND for r in look.references)
        for r in look.references:
            if r.verdict != "quoted":
                self.rounds.setdefault(r.round, Counter())["references"] += 1
                self.rounds[r.round]["unsound"] += r.verdict in UNSOUND
            if r.back is not None:
                self.back[r.back] += 1

    @property
    def judged(self) -> int:
        """References without the quoted ones."""
        return self.verdicts.total() - self.verdicts["quoted"]

    @property
    def unsound_share(self) -> float:
        """Of the references that are judged; 0 where there is none."""
        return sum(self.verdicts[verdict] for verdict in UNSOUND) / self.judged if self.judged else 0.0

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "dialogues": self.dialogues,
            "bad dialogues": self.bad,
            "images": self.images,
            "images named": self.named,
            "dialogues of several images": self.several,
            "linked": self.linked,
            "references": self.judged,
            **{verdict: self.verdicts[verdict] for verdict in ("sound", *UNSOUND, "unclear", "quoted")},
            "unsound share": self.unsound_share,
            "dialogues with unsound references": self.unsound,
            "by round": {str(n): dict(of) for n, of in sorted(self.rounds.items())},
            "rounds back": {str(n): count for n, count in sorted(self.back.items())},
        }


def summed(looks: Iterable[Look]) -> ReferenceTotals:
    """The sums of some dialogues."""
    sums = ReferenceTotals()
    for look in looks:
        sums.add(look)
    return sums

"""What a conversation is: rounds of one question, with images anywhere in it, and one answer.

The first step of the way from data to model; pure data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from visualchat.images import ImageInput


@dataclass(frozen=True)
class Caption:
    """Words that stand where an image would: numbered like one, but read as text."""

    text: str


Content = str | ImageInput | Caption

_WORDS = (str, Caption)


@dataclass(frozen=True)
class Expected:
    """What an evaluation knows of a question beside its true answer; training does without.

    Attributes:
        references: Further answers that are accepted.
        options: What there is to choose from, A first; empty for an open question.
        about: The numbers of the images that the question is about; empty if unknown.
        tags: What else scores are split by, such as {"category": "counting"}.
        captions: What the data say of each image of the round, for a judge that does not see them.
    """

    references: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    about: tuple[int, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """One round: what the user sends and what the model answers.

    Attributes:
        content: Text and images in the order in which the user sent them.
        answer: The model's answer; None where it is still to be given.
        kind: What sort of question this is, for reports by kind; empty if unused.
        expected: What an evaluation knows of the question, if anything.
    """

    content: tuple[Content, ...]
    answer: str | None = None
    kind: str = ""
    expected: Expected | None = None

    @classmethod
    def ask(cls, question: str, images: Iterable[Content] = (), answer: str | None = None, kind: str = "") -> Turn:
        """A round in figure 3's order: images first, then the question."""
        return cls((*images, question), answer, kind)

    @property
    def images(self) -> tuple[ImageInput, ...]:
        return tuple([item for item in self.content if not isinstance(item, _WORDS)])

    @property
    def question(self) -> str:
        """The text of the round, without its images."""
        return "".join([item for item in self.content if isinstance(item, str)])


@dataclass(frozen=True)
class Dialogue:
    """A conversation of one or more rounds; only the last may lack its answer.

    Attributes:
        turns: The rounds, oldest first.
        id: Names the dialogue in error messages and reports.
        system: What stands before the first turn; None for the processor's default.
        blind: Whether its images were left out; a turn may then hold nothing.

    Raises:
        ValueError: There is no turn, a turn holds neither question nor image, or a turn before the last has no answer.
    """

    turns: tuple[Turn, ...]
    id: str = "dialogue"
    system: str | None = None
    blind: bool = False

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError(f"{self.id}: a dialogue needs at least one turn, found none")
        for number, turn in enumerate(self.turns, start=1):
            if not self.blind and not turn.question.strip() and not turn.images:
                raise ValueError(f"{self.id}: turn {number} has no question, found {turn.question!r}")
            if turn.answer is None and number < len(self.turns):
                raise ValueError(
                    f"{self.id}: turn {number} of {len(self.turns)} has no answer; only the last turn may be open"
                )

    @property
    def images(self) -> tuple[ImageInput, ...]:
        """Every image in the order of appearance."""
        return tuple(image for turn in self.turns for image in turn.images)

    def require_answers(self) -> Dialogue:
        """This dialogue, if every turn has an answer that is not empty, as training needs.

        Raises:
            ValueError: A turn has none.
        """
        for number, turn in enumerate(self.turns, start=1):
            if turn.answer is None or not turn.answer.strip():
                raise ValueError(
                    f"{self.id}: turn {number} has no answer (found {turn.answer!r}); a training dialogue needs one"
                )
        return self

    def without_images(self) -> Dialogue:
        """The same rounds with every image and caption left out: what a blind model gets.

        A turn of images alone asks nothing then, and stays, so that the same answers are compared.
        """
        words = (tuple(c for c in turn.content if isinstance(c, str)) or ("",) for turn in self.turns)
        turns = tuple(replace(turn, content=content) for turn, content in zip(self.turns, words, strict=True))
        return replace(self, turns=turns, blind=True)

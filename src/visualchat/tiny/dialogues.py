"""The tiny world's dialogues: one to four drawn images over one to six rounds, made on the fly from a seed.

A `Sketch` is a dialogue before anything is drawn; `TinyDialogues` draws it, `caption_segments` puts captions in the
images' place, for pretraining on text.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from visualchat.dialogue import Caption, Content, Dialogue, Expected, Turn
from visualchat.dialogue.image_references import insert_image
from visualchat.dialogue.template import Segment, render
from visualchat.tiny.questions import Context, Question, ask
from visualchat.tiny.scenes import COMPOSITIONS, HELD_OUT, SEEN, Scene, draw, sample_scene

SYSTEM = "Answer questions about the images."
"""The system text of every tiny dialogue."""

Split = Literal["train", "validation", "unseen"]
SPLITS: tuple[Split, ...] = get_args(Split)

_IMAGE_WEIGHTS = (40, 40, 12, 8)  # how often a dialogue holds 1, 2, 3, 4 images
_QUESTIONS_BETWEEN = 0.3  # how often images of a dialogue arrive in different rounds
_RELATED = 0.5  # how often a later image takes up a colour or a shape of an earlier one


@dataclass(frozen=True)
class Round:
    """One round: the images that arrive with it, and its question."""

    scenes: tuple[Scene, ...]
    question: Question


@dataclass(frozen=True)
class Sketch:
    """A dialogue before it is drawn."""

    rounds: tuple[Round, ...]
    id: str

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """Every image's scene; image k of the dialogue is `scenes[k - 1]`."""
        return tuple(scene for turn in self.rounds for scene in turn.scenes)

    def dialogue(self) -> Dialogue:
        """The dialogue with drawn images; each has its caption in `.info["caption"]`."""
        return self._with(lambda scene: draw(scene))

    def captioned(self) -> Dialogue:
        """The same dialogue in words alone: each image's caption stands in its place."""
        return self._with(lambda scene: Caption(scene.caption))

    def undrawn(self) -> Dialogue:
        """The same dialogue, each image replaced by its caption's bytes: quick, and never to be decoded."""
        return self._with(lambda scene: scene.caption.encode())

    def _with(self, picture: Callable[[Scene], Content]) -> Dialogue:
        turns = tuple(
            Turn((*map(picture, r.scenes), r.question.text), r.question.answer, r.question.kind, _expected(r.question))
            for r in self.rounds
        )
        return Dialogue(turns, self.id)


def _expected(question: Question) -> Expected | None:
    """Which images the answer is read from, where the question does not name them, and through what hop."""
    about = tuple(sorted({number for number, _ in question.about}))
    tags = {"hop": question.hop} if question.hop else {}
    return Expected(about=about, tags=tags) if about or tags else None


class TinyDialogues:
    """A map-style data set: item i depends on split, seed and i only.

    Splits: "train" shows `SEEN` compositions only, nor do its questions name others; "validation" is the same with
    other images; in "unseen" every image shows a held-out composition, and questions turn to them where they can.

    Args:
        split: Which of `SPLITS`.
        size: Number of dialogues.
        seed: Another seed gives other dialogues; no seed of one split gives an image of another.
        captions: Whether captions stand where the images would be.
        shuffled: In how many of the dialogues with two or more images an unrelated image is inserted, so that
            image numbers are not 1, 2, ... (arXiv 2309.14327, section 5.2.4); references in the words are rewritten.
        images: How many images a dialogue has, the fewest and the most.
        joined: Up to how many dialogues of one image are put one after the other as one (section 5.1.1), each number
            as often as another; images and references are numbered through, and "the image" is the newest.

    Raises:
        ValueError: The split is unknown, the size is negative, the share is not between 0 and 1, the numbers of images
            make no dialogue, or dialogues of several images would be joined.
    """

    most_images = len(_IMAGE_WEIGHTS)
    """Of any dialogue of these."""

    def __init__(
        self,
        split: Split,
        size: int,
        seed: int = 0,
        captions: bool = False,
        shuffled: float = 0.0,
        images: Sequence[int] = (1, 4),
        joined: int = 1,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        if size < 0:
            raise ValueError(f"a data set's size cannot be negative, found {size}")
        if not 0.0 <= shuffled <= 1.0:
            raise ValueError(f"shuffled is a share between 0 and 1, found {shuffled}")
        most = self.most_images
        if len(images) != 2 or not 1 <= images[0] <= images[1] <= most:
            raise ValueError(f"images are the fewest and the most of a dialogue, from 1 to {most}; found {images}")
        if joined < 1 or (joined > 1 and images[1] > 1):
            raise ValueError(
                f"joined {joined}, images {list(images)}: only dialogues of one image are joined; type "
                "data.train.images=[1,1], or data.train.joined=1"
            )
        self.split, self.size, self.seed, self.captions, self.shuffled = split, size, seed, captions, shuffled
        self.images, self.joined = (images[0], images[1]), joined

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Dialogue:
        sketch = self.sketch(index)
        dialogue = sketch.captioned() if self.captions else sketch.dialogue()
        rng = random.Random(f"shuffled {self.seed} {index % self.size}")
        if rng.random() >= self.shuffled or len(dialogue.images) < 2:
            return dialogue
        unrelated = draw(sample_scene(rng, SEEN))
        return insert_image(dialogue, unrelated, rng.randrange(1, len(dialogue.images))) or dialogue

    def digest(self) -> str:
        """A hash (hex) of all that the dialogues are drawn from."""
        return hashlib.sha256(repr(sorted(vars(self).items())).encode()).hexdigest()

    def sketch(self, index: int) -> Sketch:
        """Dialogue `index` before it is drawn.

        Raises:
            IndexError: The index is out of range.
        """
        position = self.position(index)
        count = random.Random(f"joined {self.split} {self.seed} {position}").randint(1, self.joined)
        first = position * self.joined
        parts = [sketch_dialogue(self.split, self.seed, first + n, self.images) for n in range(count)]
        return parts[0] if count == 1 else join(parts)

    def position(self, index: int) -> int:
        """The same index counted from the first dialogue.

        Raises:
            IndexError: It is out of range.
        """
        if not -self.size <= index < self.size:
            raise IndexError(f"index {index} is out of range for {self.size} dialogues")
        return index % self.size


def sketch_dialogue(
    split: Split | Literal["pretraining"],
    seed: int,
    index: int,
    images: tuple[int, int] = (1, 4),
    most_rounds: int = 6,
) -> Sketch:
    """Dialogue `index` of a split and seed; `images` are its fewest and most, "pretraining" has all compositions."""
    rng = random.Random(f"{split} {seed} {index}")
    unseen = split == "unseen"
    pairs = SEEN if split in ("train", "validation") else COMPOSITIONS
    fewest, most = images
    number = rng.choices(range(fewest, most + 1), _IMAGE_WEIGHTS[fewest - 1 : most])[0]
    arriving_images = arrivals(rng, number, most_rounds)
    shown: list[Scene] = []
    asked: set[str] = set()
    rounds: list[Round] = []
    for arriving in arriving_images:
        new: list[Scene] = []
        for _ in range(arriving):
            new.append(related_scene(rng, pairs, [*shown, *new], unseen))
        shown += new
        question = ask(Context(shown, pairs, rng, prefer_held_out=unseen), asked)
        asked.add(question.text)
        rounds.append(Round(tuple(new), question))
    return Sketch(tuple(rounds), f"tiny-{split}-{seed}-{index}")


def join(sketches: Sequence[Sketch]) -> Sketch:
    """Dialogues of one image each as one, one after the other, their images numbered through."""
    rounds: list[Round] = []
    for number, sketch in enumerate(sketches, start=1):
        for one in sketch.rounds:
            text = re.sub(r"\bimage 1\b", f"image {number}", one.question.text)
            about = tuple((number, cell) for _, cell in one.question.about)
            rounds.append(replace(one, question=replace(one.question, text=text, about=about)))
    return Sketch(tuple(rounds), " + ".join(sketch.id for sketch in sketches))


def arrivals(rng: random.Random, images: int, most_rounds: int) -> list[int]:
    """How many images arrive in each round; the first round has at least one."""
    between = images > 1 and rng.random() < _QUESTIONS_BETWEEN
    rounds = rng.randint(2 if between else 1, most_rounds if images > 1 else max(1, most_rounds - 2))
    arrivals = [0] * rounds
    if not between:
        arrivals[0] = images
        return arrivals
    first = rng.randint(1, images - 1)
    arrivals[0] = first
    for _ in range(images - first):
        arrivals[rng.randrange(1, rounds)] += 1
    return arrivals


def related_scene(
    rng: random.Random, pairs: Sequence[tuple[str, str]], earlier: Sequence[Scene], held_out: bool
) -> Scene:
    """A new scene; often it shares a colour or a shape with an earlier one, so that images can be mixed up."""
    required = [rng.choice(HELD_OUT)] if held_out else []
    if earlier and rng.random() < _RELATED:
        model = rng.choice(rng.choice(earlier).shapes)
        required.append(rng.choice([p for p in pairs if p[0] == model.colour or p[1] == model.shape]))
    return sample_scene(rng, pairs, required)


def caption_segments(sketch: Sketch) -> tuple[Segment, ...]:
    """The prompt of a dialogue with captions for images: the world in words alone."""
    return render(sketch.captioned(), system=SYSTEM)

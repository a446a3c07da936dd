"""Dialogues of questions with hops: one to eight drawn images over up to a dozen rounds, made on the fly from a seed.

They are the tiny world's own images and splits (`visualchat.tiny.dialogues`) with the questions of
`visualchat.tiny.hops`. Many dialogues have a theme, a colour or shape that all images share or all but one, so that
questions over all images have an answer and a distractor.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from visualchat.tiny.dialogues import Round, Sketch, Split, TinyDialogues, arrivals, related_scene
from visualchat.tiny.hops import HopContext, ask_hop
from visualchat.tiny.questions import Question
from visualchat.tiny.scenes import COLOURS, COMPOSITIONS, HELD_OUT, SEEN, SHAPES, Scene, sample_scene

MOST_IMAGES = 8
_THEMES = ("all", "all but one", "none")
_THEME_WEIGHTS = (35, 40, 25)


class HopDialogues(TinyDialogues):
    """A map-style data set: item i depends on split, seed, number of images and rounds, and i only.

    Splits are those of `TinyDialogues`.

    Args:
        split: Which of `SPLITS`.
        size: Number of dialogues.
        seed: Another seed gives other dialogues; no seed of one split gives an image of another.
        captions: Whether captions stand where the images would be.
        images: How many images a dialogue has, the fewest and the most; each number is as frequent as another.
        rounds: The longest dialogues' rounds.

    Raises:
        ValueError: The split is unknown, the size is negative, or the numbers of images or rounds make no dialogue.
    """

    most_images = MOST_IMAGES

    def __init__(
        self,
        split: Split,
        size: int,
        seed: int = 0,
        captions: bool = False,
        images: Sequence[int] = (1, 4),
        rounds: int = 8,
    ) -> None:
        super().__init__(split, size, seed, captions, images=images)
        if rounds < 2:
            raise ValueError(f"the longest dialogues have at least 2 rounds, found {rounds}")
        self.rounds = rounds

    def sketch(self, index: int) -> Sketch:
        """Dialogue `index` before it is drawn.

        Raises:
            IndexError: The index is out of range.
        """
        return sketch_hops(self.split, self.seed, self.position(index), self.images, self.rounds)


def sketch_hops(
    split: Split | Literal["pretraining"], seed: int, index: int, images: tuple[int, int], most_rounds: int
) -> Sketch:
    """Dialogue `index` of a split and seed; "pretraining" has all compositions."""
    id = f"tiny-hops-{split}-{seed}-{index}"
    rng = random.Random(f"{id} {images} {most_rounds}")
    unseen = split == "unseen"
    pairs = SEEN if split in ("train", "validation") else COMPOSITIONS
    number = rng.randint(*images)
    theme = _Theme(rng, number)
    shown: list[Scene] = []
    asked: list[Question] = []
    rounds: list[Round] = []
    for arriving in arrivals(rng, number, most_rounds):
        new: list[Scene] = []
        for _ in range(arriving):
            new.append(theme.scene(rng, pairs, [*shown, *new], unseen))
        shown += new
        asked.append(ask_hop(HopContext(shown, asked, pairs, rng, prefer_held_out=unseen)))
        rounds.append(Round(tuple(new), asked[-1]))
    return Sketch(tuple(rounds), id)


class _Theme:
    """What the images of a dialogue have in common: a colour or shape of all of them, or of all but one, or nothing."""

    def __init__(self, rng: random.Random, images: int) -> None:
        kind = rng.choices(_THEMES, _THEME_WEIGHTS)[0]
        self.name = rng.choice(rng.choice((tuple(COLOURS), SHAPES))) if kind != "none" else ""
        self.lacking = rng.randrange(images) if kind == "all but one" else None

    def scene(
        self, rng: random.Random, pairs: Sequence[tuple[str, str]], earlier: Sequence[Scene], held_out: bool
    ) -> Scene:
        """The next image after the earlier ones."""
        if not self.name:
            return related_scene(rng, pairs, earlier, held_out)
        if len(earlier) == self.lacking:
            pairs = [pair for pair in pairs if self.name not in pair]
            required = [rng.choice([pair for pair in HELD_OUT if self.name not in pair])] if held_out else []
        else:
            required = [rng.choice([pair for pair in pairs if self.name in pair])]
            required += [rng.choice(HELD_OUT)] if held_out else []
        return sample_scene(rng, pairs, required)

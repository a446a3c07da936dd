"""Captions in the tiny world: one drawn image, the request to describe it, and five captions that are all true.

The counterpart of captioning in section 4.2.1 of arXiv 2309.14327, and of COCO's five captions an image.
"""

from __future__ import annotations

import hashlib
import random
from itertools import permutations

from visualchat.dialogue import Dialogue, Expected, Turn
from visualchat.tiny.dialogues import SPLITS, Split
from visualchat.tiny.questions import enumerate_shapes
from visualchat.tiny.scenes import HELD_OUT, SEEN, Scene, draw, sample_scene

REQUEST = "What is in the image?"
_REFERENCES = 5


class TinyCaptions:
    """A map-style data set: item i depends on split, seed and i only.

    Splits are those of `TinyDialogues`: every image of "unseen" shows a composition that training never shows.
    The answer lists the shapes in raster order, as the tiny language models were taught to; the further references
    list them in other orders.

    Args:
        split: "train", "validation" or "unseen".
        size: Number of images.
        seed: Another seed gives other images.

    Raises:
        ValueError: The split is unknown, or the size is negative.
    """

    def __init__(self, split: Split, size: int, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        if size < 0:
            raise ValueError(f"a data set's size cannot be negative, found {size}")
        self.split, self.size, self.seed = split, size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Dialogue:
        scene = self.scene(index)
        answer, *others = captions(scene)
        expected = Expected(references=tuple(others), about=(1,))
        turn = Turn((draw(scene), REQUEST), answer, "caption", expected)
        return Dialogue((turn,), f"tiny-captions-{self.split}-{self.seed}-{index % self.size}")

    def scene(self, index: int) -> Scene:
        """The scene of image `index`.

        Raises:
            IndexError: The index is out of range.
        """
        if not -self.size <= index < self.size:
            raise IndexError(f"index {index} is out of range for {self.size} images")
        rng = random.Random(f"captions {self.split} {self.seed} {index % self.size}")
        return sample_scene(rng, SEEN, [rng.choice(HELD_OUT)] if self.split == "unseen" else ())

    def digest(self) -> str:
        """A hash (hex) of all that the images are drawn from."""
        return hashlib.sha256(repr(("captions", self.split, self.size, self.seed)).encode()).hexdigest()


def captions(scene: Scene) -> list[str]:
    """True captions of a scene, at most five different ones; its shapes in raster order come first."""
    orders = dict.fromkeys(enumerate_shapes(order) for order in permutations(scene.shapes))
    first, *others = orders
    return [first, *random.Random(scene.look).sample(others, min(len(others), _REFERENCES - 1))]

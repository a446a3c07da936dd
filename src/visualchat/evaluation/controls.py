"""Controls beside a score: the same questions with the images left out, in another order, or with one of them replaced.

A model that looks at the right image keeps its answers where the images of a round change places and their numbers in
the words change with them, gives another answer where the image asked about is another one, and falls to chance where
there is none. A control leaves out the dialogues that it cannot be made of; ids stay, so that the same questions can
be compared. What is shown is made when it is asked for, so images need not fit into memory.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from visualchat.data.sources.lazy import LazySequence
from visualchat.dialogue import Content, Dialogue, Expected, Turn
from visualchat.dialogue.image_references import renumber
from visualchat.evaluation.predictions import REPLACED
from visualchat.images import ImageInput
from visualchat.images.feature_store import image_key


@dataclass(frozen=True)
class Changed(LazySequence[Dialogue]):
    """Some dialogues as a control shows them, made when they are asked for.

    Attributes:
        indexes: Of those that the control can be made of.
        change: Makes one, by its index.
    """

    indexes: Sequence[int]
    change: Callable[[int], Dialogue]

    def __len__(self) -> int:
        return len(self.indexes)

    def item(self, index: int) -> Dialogue:
        """Dialogue `index` of those that the control can be made of."""
        return self.change(self.indexes[index])


def blind(dialogues: Sequence[Dialogue], seed: int = 0) -> Sequence[Dialogue]:
    """The dialogues without their images."""
    return [dialogue.without_images() for dialogue in dialogues]


def permuted(dialogues: Sequence[Dialogue], seed: int = 0) -> Sequence[Dialogue]:
    """The dialogues with the images of each round in another order, and their numbers in words changed with them."""

    def change(index: int) -> Dialogue:
        changed = permute(dialogues[index], seed)
        assert changed is not None
        return changed

    indexes = [index for index, dialogue in enumerate(dialogues) if permute(dialogue, seed) is not None]
    return Changed(indexes, change)


def replaced(dialogues: Sequence[Dialogue], seed: int = 0) -> Sequence[Dialogue]:
    """The dialogues with one image replaced by one of another dialogue; the tag `replaced` tells its number.

    That is the next image, in the order of the dialogues and from the last one on to the first, that is not in it.
    """
    images = [tuple(map(_identity, dialogue.images)) for dialogue in dialogues]
    known = {image for of in images for image in of}
    others = {index: _next_other(images, index) for index, of in enumerate(images) if of and not known.issubset(of)}

    def change(index: int) -> Dialogue:
        dialogue, (other, place) = dialogues[index], others[index]
        number = random.Random(f"{seed} {dialogue.id}").randrange(len(images[index])) + 1
        return replace_image(dialogue, number, dialogues[other].images[place])

    return Changed([*others], change)


def _identity(image: ImageInput) -> Hashable:
    """What is equal for equal images, and small."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    if isinstance(image, Image.Image):
        return image_key(image.convert("RGBA") if image.mode == "P" else image)  # P: a palette tells the colours
    return image


def _next_other(images: Sequence[Sequence[Hashable]], index: int) -> tuple[int, int]:
    """The dialogue and the place there of the first image behind a dialogue's that it lacks; there must be one."""
    own = {*images[index]}
    behind = (n % len(images) for n in range(index + 1, index + len(images)))
    return next((n, place) for n in behind for place, image in enumerate(images[n]) if image not in own)


CONTROLS: Mapping[str, Callable[[Sequence[Dialogue], int], Sequence[Dialogue]]] = {
    "blind": blind,
    "permuted": permuted,
    "replaced": replaced,
}


def permute(dialogue: Dialogue, seed: int = 0) -> Dialogue | None:
    """The dialogue with the images of each round in another order; no image keeps its place.

    Args:
        dialogue: Captions count as images.
        seed: With the dialogue's id, of the order.

    Returns:
        The new dialogue; None where no round has two images beside each other, or where words, answers or options may
        speak of an image in a way that cannot be rewritten safely.
    """
    rng, numbers, contents = random.Random(f"{seed} {dialogue.id}"), dict[int, int](), []
    for turn in dialogue.turns:
        places = [place for place, item in enumerate(turn.content) if not isinstance(item, str)]
        beside_each_other = len(places) > 1 and places[-1] - places[0] == len(places) - 1
        shift = rng.randrange(1, len(places)) if beside_each_other else 0
        first, content = len(numbers), list(turn.content)
        for old, place in enumerate(places):
            new = (old + shift) % len(places)
            numbers[first + old + 1] = first + new + 1
            content[places[new]] = turn.content[place]
        contents.append(content)
    if all(old == new for old, new in numbers.items()):
        return None
    try:
        turns = [_renumbered(t, c, numbers) for t, c in zip(dialogue.turns, contents, strict=True)]
    except LookupError:
        return None
    return replace(dialogue, turns=tuple(turns))


def _renumbered(turn: Turn, content: Sequence[Content], numbers: Mapping[int, int]) -> Turn:
    """The round with every number of an image changed; LookupError where one may go unseen."""

    def words(text: str) -> str:
        changed = renumber(text, lambda old: numbers.get(old, old), same_images=True)
        if changed is None:
            raise LookupError(text)
        return changed

    expected = turn.expected
    if expected is not None:
        expected = replace(
            expected,
            references=tuple(map(words, expected.references)),
            options=tuple(map(words, expected.options)),
            about=tuple(numbers[number] for number in expected.about),
        )
    return replace(
        turn,
        content=tuple(words(item) if isinstance(item, str) else item for item in content),
        answer=None if turn.answer is None else words(turn.answer),
        expected=expected,
    )


def replace_image(dialogue: Dialogue, number: int, image: ImageInput) -> Dialogue:
    """The dialogue with image `number` (from 1) replaced; what was true of it need not be any more."""
    seen, turns = 0, []
    for turn in dialogue.turns:
        content: list[Content] = []
        for item in turn.content:
            seen += not isinstance(item, str)
            content.append(image if not isinstance(item, str) and seen == number else item)
        expected = turn.expected or Expected()
        tags = {**expected.tags, REPLACED: str(number)}
        turns.append(replace(turn, content=tuple(content), expected=replace(expected, tags=tags)))
    return replace(dialogue, turns=tuple(turns))

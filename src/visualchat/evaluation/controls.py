"""Controls beside a score: the same questions with the images left out, in another order, or with one of them replaced.

A model that looks at the right image keeps its answers where the images of a round change places and their numbers in
the words change with them, gives another answer where the image asked about is another one, and falls to chance where
there is none. A control leaves out the dialogues that it cannot be made of; ids stay, so that the same questions can
be compared.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from visualchat.dialogue import Content, Dialogue, Expected, Turn
from visualchat.dialogue.image_references import renumber
from visualchat.images import ImageInput

REPLACED = "replaced"
"""The tag that tells the number of the image that was replaced."""


def blind(dialogues: Sequence[Dialogue], seed: int = 0) -> list[Dialogue]:
    """The dialogues without their images."""
    return [dialogue.without_images() for dialogue in dialogues]


def permuted(dialogues: Sequence[Dialogue], seed: int = 0) -> list[Dialogue]:
    """The dialogues with the images of each round in another order, and their numbers in words changed with them."""
    return [changed for dialogue in dialogues if (changed := permute(dialogue, seed)) is not None]


def replaced(dialogues: Sequence[Dialogue], seed: int = 0) -> list[Dialogue]:
    """The dialogues with one image replaced by one of another dialogue; the tag `replaced` tells its number."""
    changed = []
    for index, dialogue in enumerate(dialogues):
        if not (images := dialogue.images):
            continue
        number = random.Random(f"{seed} {dialogue.id}").randrange(len(images)) + 1
        others = (image for other in (*dialogues[index + 1 :], *dialogues[:index]) for image in other.images)
        other = next((image for image in others if image not in images), None)
        if other is not None:
            changed.append(replace_image(dialogue, number, other))
    return changed


CONTROLS: Mapping[str, Callable[[Sequence[Dialogue], int], list[Dialogue]]] = {
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

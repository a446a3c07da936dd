"""The tiny world's question types: from the scenes of a dialogue so far to a question with one right answer.

Every answer follows from the captions alone. A question about one image names it ("in image 2") unless only one
image was shown yet or its words fit one thing in all images so far; a question over all images says "any image"
or "which image".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from visualchat.tiny.scenes import CELLS, COLOURS, HELD_OUT, Scene, Shape


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        text: What is asked.
        answer: The only right answer.
        kind: The type, one of `KINDS`.
        about: Image number (from 1) and cell of the shapes that the answer is read from, where there are such.
        hop: What a question of `visualchat.tiny.hops` needs, such as "compare".
        named: There, the colour or shape on which a question over all images turns.
        rest: There, of a question about one thing, the attribute of it that is neither named nor asked.
    """

    text: str
    answer: str
    kind: str
    about: tuple[tuple[int, int], ...] = ()
    hop: str = ""
    named: str = ""
    rest: str = ""


@dataclass(frozen=True)
class Context:
    """What a question may speak of.

    Attributes:
        scenes: The images shown so far; image k is `scenes[k - 1]`.
        pairs: The compositions that questions may name.
        rng: Source of every choice.
        prefer_held_out: Ask about held-out compositions where there are any.
    """

    scenes: Sequence[Scene]
    pairs: Sequence[tuple[str, str]]
    rng: random.Random
    prefer_held_out: bool = False

    def items(self) -> list[tuple[int, Shape]]:
        """Every shape so far with its image number (from 1)."""
        return [(number, shape) for number, scene in enumerate(self.scenes, start=1) for shape in scene.shapes]

    def pick(self, items: Sequence[tuple[int, Shape]]) -> tuple[int, Shape]:
        """One of some shapes; a held-out one if there is one and they are preferred."""
        if self.prefer_held_out:
            items = [item for item in items if item[1].pair in HELD_OUT] or items
        return self.rng.choice(items)

    def place(self, number: int, unique: bool) -> str:
        """The words that say which image is meant; none where there is no need and the dice say so.

        Args:
            number: The image, from 1.
            unique: Whether the rest of the question fits one thing only in all images so far.
        """
        if len(self.scenes) == 1:
            return self.rng.choices(("", " in the image", " in image 1"), (50, 20, 30))[0]
        return "" if unique and self.rng.random() < 0.35 else f" in image {number}"


def _unique_items(context: Context, key: Callable[[Shape], str]) -> list[tuple[int, Shape]]:
    """Shapes that are the only one of their key within their image."""
    return [
        (number, shape)
        for number, shape in context.items()
        if [key(other) for other in context.scenes[number - 1].shapes].count(key(shape)) == 1
    ]


def _is_unique(context: Context, key: Callable[[Shape], str], value: str) -> bool:
    """Whether one shape alone has this key in all images so far."""
    return [key(shape) for _, shape in context.items()].count(value) == 1


def _colour_of(shape: Shape) -> str:
    return shape.colour


def _shape_of(shape: Shape) -> str:
    return shape.shape


def _name_of(shape: Shape) -> str:
    return shape.name


def ask_colour(context: Context) -> Question | None:
    """ "What colour is the circle in image 2?" """
    items = _unique_items(context, _shape_of)
    if not items:
        return None
    number, shape = context.pick(items)
    place = context.place(number, _is_unique(context, _shape_of, shape.shape))
    return Question(f"What colour is the {shape.shape}{place}?", shape.colour, "colour", ((number, shape.cell),))


def ask_shape(context: Context) -> Question | None:
    """ "What shape is the red one in image 2?" """
    items = _unique_items(context, _colour_of)
    if not items:
        return None
    number, shape = context.pick(items)
    place = context.place(number, _is_unique(context, _colour_of, shape.colour))
    return Question(f"What shape is the {shape.colour} one{place}?", shape.shape, "shape", ((number, shape.cell),))


def ask_where(context: Context) -> Question | None:
    """ "Where is the red circle in image 2?" """
    items = _unique_items(context, _name_of)
    if not items:
        return None
    number, shape = context.pick(items)
    place = context.place(number, _is_unique(context, _name_of, shape.name))
    return Question(f"Where is the {shape.name}{place}?", CELLS[shape.cell], "where", ((number, shape.cell),))


def ask_count(context: Context) -> Question | None:
    """ "How many shapes are in image 2?" or "How many red shapes are in image 2?" """
    number = context.rng.randrange(len(context.scenes)) + 1
    shapes = context.scenes[number - 1].shapes
    place = context.place(number, unique=False) or " there"
    if context.rng.random() < 0.6:
        return Question(_how_many("", place), str(len(shapes)), "count")
    present = context.rng.random() < 0.7
    colour = context.pick([(number, s) for s in shapes])[1].colour if present else context.rng.choice(list(COLOURS))
    return Question(_how_many(f"{colour} ", place), str(sum(s.colour == colour for s in shapes)), "count")


def _how_many(colour: str, place: str) -> str:
    return f"How many {colour}shapes are{place}?"


def ask_exists(context: Context) -> Question | None:
    """ "Is there a red circle in image 2?" or "Is there a red circle in any image?"; half of the answers are no.

    Half of the negatives are hard: their colour or their shape is there, or they stand in another image.
    """
    everywhere = len(context.scenes) > 1 and context.rng.random() < 0.2
    number = context.rng.randrange(len(context.scenes)) + 1
    if context.prefer_held_out and context.rng.random() < 0.5:
        number = context.pick(context.items())[0]
    items = [(n, shape) for n, shape in context.items() if everywhere or n == number]
    place = " in any image" if everywhere else context.place(number, unique=False)
    if context.rng.random() < 0.5:
        number, shape = context.pick(items)
        return Question(f"Is there a {shape.name}{place}?", "yes", "exists", ((number, shape.cell),))
    here = [shape for _, shape in items]
    absent = [pair for pair in context.pairs if pair not in {shape.pair for shape in here}]
    if context.rng.random() < 0.5:
        absent = _hard_negatives(context, here, absent) or absent
    return Question(f"Is there a {' '.join(context.rng.choice(absent))}{place}?", "no", "exists")


def _hard_negatives(context: Context, here: list[Shape], absent: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Absent pairs that stand in another image, or else whose colour or shape is here."""
    elsewhere = {shape.pair for _, shape in context.items()}
    others = [pair for pair in absent if pair in elsewhere]
    if others and context.rng.random() < 0.5:
        return others
    colours, shapes = {shape.colour for shape in here}, {shape.shape for shape in here}
    return [(colour, shape) for colour, shape in absent if colour in colours or shape in shapes]


def ask_which(context: Context) -> Question | None:
    """ "Which image has the red circle?": there is one such thing in all images so far."""
    if len(context.scenes) < 2:
        return None
    items = [(n, shape) for n, shape in context.items() if _is_unique(context, _name_of, shape.name)]
    if not items:
        return None
    number, shape = context.pick(items)
    return Question(f"Which image has the {shape.name}?", f"image {number}", "which", ((number, shape.cell),))


def ask_same(context: Context) -> Question | None:
    """ "Is the circle in image 1 the same colour as the star in image 2?" or the same shape, by colour; yes or no."""
    if len(context.scenes) < 2:
        return None
    wanted = context.rng.random() < 0.5
    couples = _couples(context, _shape_of, _colour_of, wanted) + _couples(context, _colour_of, _shape_of, wanted)
    if context.prefer_held_out:
        couples = [c for c in couples if {c[0][1].pair, c[1][1].pair} & set(HELD_OUT)] or couples
    if not couples:
        return None
    (i, a), (j, b), by_colour = context.rng.choice(couples)
    if by_colour:
        text = f"Is the {a.shape} in image {i} the same colour as the {b.shape} in image {j}?"
    else:
        text = f"Is the {a.colour} one in image {i} the same shape as the {b.colour} one in image {j}?"
    return Question(text, "yes" if wanted else "no", "same", ((i, a.cell), (j, b.cell)))


def _couples(
    context: Context, named: Callable[[Shape], str], compared: Callable[[Shape], str], wanted: bool
) -> list[tuple[tuple[int, Shape], tuple[int, Shape], bool]]:
    """Pairs of shapes of two images, each the only one of its name, that are equal (or not) in what is compared.

    The last entry says whether colours are compared (and shapes name).
    """
    items = _unique_items(context, named)
    return [
        (a, b, compared is _colour_of)
        for a in items
        for b in items
        if a[0] != b[0] and (compared(a[1]) == compared(b[1])) == wanted
    ]


def ask_describe(context: Context) -> Question | None:
    """ "What is in image 2?": everything in raster order, "a red circle, a blue square and a green star"."""
    number = context.pick(context.items())[0]
    place = context.place(number, unique=False) or " in the image"
    return Question(f"What is{place}?", enumerate_shapes(context.scenes[number - 1].shapes), "describe")


def enumerate_shapes(shapes: Sequence[Shape]) -> str:
    """The shapes in words: "a red circle, a blue square and a green star"."""
    names = [f"a {shape.name}" for shape in shapes]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


ASK: dict[str, tuple[Callable[[Context], Question | None], int]] = {
    "colour": (ask_colour, 18),
    "shape": (ask_shape, 15),
    "count": (ask_count, 15),
    "exists": (ask_exists, 16),
    "where": (ask_where, 12),
    "which": (ask_which, 14),
    "same": (ask_same, 12),
    "describe": (ask_describe, 7),
}
"""Each question type with its maker, which gives None where the images do not allow the type, and its weight."""

KINDS = tuple(ASK)


def ask(context: Context, asked: set[str]) -> Question:
    """A random question about the images so far whose text is not in `asked`."""
    weights = [weight for _, weight in ASK.values()]
    for _ in range(200):
        kind = context.rng.choices(KINDS, weights)[0]
        question = ASK[kind][0](context)
        if question is not None and question.text not in asked:
            return question
    raise AssertionError(f"no new question found about {[scene.caption for scene in context.scenes]}")

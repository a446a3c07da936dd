"""The tiny world's questions with hops: what an answer needs to be read from, from one shape to all images.

    one_image      colour, shape, where, exists     "What colour is the star in image 2?"
    which_image    which                            "Which image has the red circle?"
    compare        same                             "Is the star in image 1 the same colour as the cross in image 3?"
    all_images     count, list, common, odd         after MIMIC's tasks (arXiv 2601.07812)
    earlier_round  back_1, back_2, back_3           "Where is the thing I asked about two questions ago?"

As in `visualchat.tiny.questions`, every answer follows from the captions and the dialogue so far, and is the only right
one. Makers choose the answer first where they can, so that a guess without the images is rarely right.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from visualchat.tiny.questions import Question
from visualchat.tiny.scenes import CELLS, COLOURS, HELD_OUT, SHAPES, Scene, Shape

Thing = tuple[int, Shape]
"""A shape with the number (from 1) of its image."""
Attribute = Literal["colour", "shape", "where"]
ATTRIBUTES: tuple[Attribute, ...] = ("colour", "shape", "where")

BACK = {1: "in my last question", 2: "two questions ago", 3: "three questions ago"}
"""How a question refers to the one of so many rounds before."""


@dataclass(frozen=True)
class HopContext:
    """What a question may speak of.

    Attributes:
        scenes: The images shown so far; image k is `scenes[k - 1]`.
        history: The questions so far.
        pairs: The compositions that questions may name.
        rng: Source of every choice.
        prefer_held_out: Ask about held-out compositions where there are any.
    """

    scenes: Sequence[Scene]
    history: Sequence[Question]
    pairs: Sequence[tuple[str, str]]
    rng: random.Random
    prefer_held_out: bool = False

    def things(self) -> list[Thing]:
        """Every shape so far."""
        return [(number, shape) for number, scene in enumerate(self.scenes, start=1) for shape in scene.shapes]

    def pick(self, things: Sequence[Thing]) -> Thing:
        """One of some things: one that no question was about so far if there is any, so that none is told already."""
        if self.prefer_held_out:
            things = [thing for thing in things if thing[1].pair in HELD_OUT] or things
        told = {place for question in self.history for place in question.about}
        return self.rng.choice([thing for thing in things if _place(thing) not in told] or things)

    def names(self) -> list[str]:
        """The colours and shapes on which no question over all images has turned so far."""
        return [name for name in (*COLOURS, *SHAPES) if name not in {q.named for q in self.history}]

    def having(self, name: str) -> list[Thing]:
        """Every thing of this colour or shape so far."""
        return [thing for thing in self.things() if name in thing[1].pair]


def _place(thing: Thing) -> tuple[int, int]:
    return thing[0], thing[1].cell


def _value(shape: Shape, attribute: Attribute) -> str:
    return {"colour": shape.colour, "shape": shape.shape, "where": CELLS[shape.cell]}[attribute]


def _noun(shape: Shape, named: Attribute) -> str:
    """ "circle", "red one" or "top-left one"."""
    return shape.shape if named == "shape" else f"{_value(shape, named)} one"


def _asking(attribute: Attribute) -> str:
    return "Where is" if attribute == "where" else f"What {attribute} is"


def _unique(context: HopContext, named: Attribute) -> list[Thing]:
    """Things that are the only one of their kind within their image."""
    return [
        (number, shape)
        for number, shape in context.things()
        if sum(_value(other, named) == _value(shape, named) for other in context.scenes[number - 1].shapes) == 1
    ]


def _of_one_thing(context: HopContext, asked: Attribute) -> Question | None:
    """ "What colour is the circle in image 2?": the thing is named by one attribute and asked for another."""
    named = context.rng.choice([attribute for attribute in ATTRIBUTES if attribute != asked])
    things = _unique(context, named)
    if not things:
        return None
    thing = context.pick(things)
    number, shape = thing
    text = f"{_asking(asked)} the {_noun(shape, named)} in image {number}?"
    rest = next(attribute for attribute in ATTRIBUTES if attribute not in (asked, named))
    return Question(text, _value(shape, asked), asked, (_place(thing),), rest=rest)


def ask_colour(context: HopContext) -> Question | None:
    """ "What colour is the top-left one in image 2?" """
    return _of_one_thing(context, "colour")


def ask_shape(context: HopContext) -> Question | None:
    """ "What shape is the red one in image 2?" """
    return _of_one_thing(context, "shape")


def ask_where(context: HopContext) -> Question | None:
    """ "Where is the circle in image 2?" """
    return _of_one_thing(context, "where")


def ask_exists(context: HopContext) -> Question | None:
    """ "Is there a red circle in image 2?": half are not; what is not there is elsewhere, or half of it is there."""
    thing = context.pick(context.things())
    number, shape = thing
    if context.rng.random() < 0.5:
        return Question(f"Is there a {shape.name} in image {number}?", "yes", "exists", (_place(thing),))
    here = {other.pair for other in context.scenes[number - 1].shapes}
    elsewhere = {other.pair for _, other in context.things()} - here
    words = {word for pair in here for word in pair}
    alike = {pair for pair in context.pairs if set(pair) & words} - here
    absent = sorted(elsewhere if elsewhere and context.rng.random() < 0.5 else alike)
    return Question(f"Is there a {' '.join(context.rng.choice(absent))} in image {number}?", "no", "exists")


def ask_which(context: HopContext) -> Question | None:
    """ "Which image has the red circle?": there is one such thing in all images so far."""
    pairs = [shape.pair for _, shape in context.things()]
    things = [thing for thing in context.things() if pairs.count(thing[1].pair) == 1]
    if len(context.scenes) < 2 or not things:
        return None
    thing = context.pick(things)
    return Question(f"Which image has the {thing[1].name}?", f"image {thing[0]}", "which", (_place(thing),))


_COMPARED: tuple[tuple[Attribute, Attribute], ...] = (("colour", "shape"), ("shape", "colour"))
"""What two things may be compared in, and what they are then named by."""


def ask_same(context: HopContext) -> Question | None:
    """ "Is the circle in image 1 the same colour as the star in image 2?" or the same shape, by colour.

    Asked only where both answers were possible, so that yes and no are even.
    """
    compared, named = context.rng.choice(_COMPARED)
    things = _unique(context, named)
    couples: dict[bool, list[tuple[Thing, Thing]]] = {True: [], False: []}
    for a, b in itertools.permutations(things, 2):
        if a[0] != b[0]:
            couples[_value(a[1], compared) == _value(b[1], compared)].append((a, b))
    if not couples[True] or not couples[False]:
        return None
    wanted = context.rng.random() < 0.5
    first, second = context.rng.choice(couples[wanted])
    left, right = (f"the {_noun(shape, named)} in image {number}" for number, shape in (first, second))
    answer = "yes" if wanted else "no"
    return Question(f"Is {left} the same {compared} as {right}?", answer, "same", (_place(first), _place(second)))


def _plural(name: str) -> str:
    return f"{name} shapes" if name in COLOURS else "crosses" if name == "cross" else f"{name}s"


def _a(name: str) -> str:
    return f"a {name} shape" if name in COLOURS else f"a {name}"


def _balanced(context: HopContext, groups: dict[int, list[str]]) -> str:
    """A name of one of the groups, each group as likely as another."""
    return context.rng.choice(groups[context.rng.choice(sorted(groups))])


def _by_size(names: Iterable[str], size: Callable[[str], int]) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = defaultdict(list)
    for name in names:
        groups[size(name)].append(name)
    return groups


def ask_count(context: HopContext) -> Question | None:
    """ "How many red shapes are in all images?": each number that some name has is as likely as another."""
    groups = _by_size(context.names(), lambda name: len(context.having(name)))
    groups = {size: names for size, names in groups.items() if size < 10}
    if not groups:
        return None
    name = _balanced(context, groups)
    found = context.having(name)
    text = f"How many {_plural(name)} are in all images?"
    return Question(text, str(len(found)), "count", tuple(map(_place, found)), named=name)


def ask_list(context: HopContext) -> Question | None:
    """ "Which images have a circle?": "image 1, image 3"; some have, and some have not."""
    groups = _by_size(context.names(), lambda name: len({number for number, _ in context.having(name)}))
    groups = {size: names for size, names in groups.items() if 0 < size < len(context.scenes)}
    if not groups:
        return None
    name = _balanced(context, groups)
    found = context.having(name)
    numbers = sorted({number for number, _ in found})
    answer = ", ".join(f"image {number}" for number in numbers)
    return Question(f"Which images have {_a(name)}?", answer, "list", tuple(map(_place, found)), named=name)


def ask_common(context: HopContext) -> Question | None:
    """ "Which shape is in every image?": there is one; another one may be in all images but one."""
    everywhere = [name for name in (*COLOURS, *SHAPES) if _images_with(context, name) == len(context.scenes)]
    of_kind = {"colour": [n for n in everywhere if n in COLOURS], "shape": [n for n in everywhere if n in SHAPES]}
    fit = [(kind, names[0]) for kind, names in of_kind.items() if len(names) == 1 and names[0] in context.names()]
    if len(context.scenes) < 2 or not fit:
        return None
    kind, name = context.rng.choice(fit)
    about = tuple(map(_place, context.having(name)))
    return Question(f"Which {kind} is in every image?", name, "common", about, named=name)


def ask_odd(context: HopContext) -> Question | None:
    """ "Which image has no circle?": every other one has."""
    names = [name for name in context.names() if _images_with(context, name) == len(context.scenes) - 1]
    if len(context.scenes) < 2 or not names:
        return None
    name = context.rng.choice(names)
    found = context.having(name)
    lacking = set(range(1, len(context.scenes) + 1)) - {number for number, _ in found}
    text = f"Which image has no {name if name in SHAPES else f'{name} shape'}?"
    return Question(text, f"image {lacking.pop()}", "odd", tuple(map(_place, found)), named=name)


def _images_with(context: HopContext, name: str) -> int:
    return len({number for number, _ in context.having(name)})


def ask_back(context: HopContext, rounds: int) -> Question | None:
    """ "Where is the thing I asked about two questions ago?": what that question neither named nor asked."""
    if rounds > len(context.history) or not context.history[-rounds].rest:
        return None
    asked_of = context.history[-rounds]
    asked: Attribute = next(attribute for attribute in ATTRIBUTES if attribute == asked_of.rest)
    number, cell = asked_of.about[0]
    shape = next(shape for shape in context.scenes[number - 1].shapes if shape.cell == cell)
    text = f"{_asking(asked)} the thing I asked about {BACK[rounds]}?"
    return Question(text, _value(shape, asked), f"back_{rounds}", asked_of.about)


def _ask_back(rounds: int) -> Callable[[HopContext], Question | None]:
    return lambda context: ask_back(context, rounds)


ASK_HOPS: dict[str, tuple[Callable[[HopContext], Question | None], int, str]] = {
    "colour": (ask_colour, 16, "one_image"),
    "shape": (ask_shape, 16, "one_image"),
    "where": (ask_where, 8, "one_image"),
    "exists": (ask_exists, 8, "one_image"),
    "which": (ask_which, 10, "which_image"),
    "same": (ask_same, 40, "compare"),
    "count": (ask_count, 16, "all_images"),
    "list": (ask_list, 12, "all_images"),
    "common": (ask_common, 20, "all_images"),
    "odd": (ask_odd, 22, "all_images"),
    "back_1": (_ask_back(1), 20, "earlier_round"),
    "back_2": (_ask_back(2), 26, "earlier_round"),
    "back_3": (_ask_back(3), 36, "earlier_round"),
}
"""Each question type: its maker, which gives None where images or dialogue do not allow it, its weight and its hop."""

HOP_KINDS = tuple(ASK_HOPS)


def ask_hop(context: HopContext) -> Question:
    """A random question about the images so far; none is asked twice, but for references to earlier rounds."""
    asked = {question.text for question in context.history}
    weights = [weight for _, weight, _ in ASK_HOPS.values()]
    for _ in range(400):
        kind = context.rng.choices(HOP_KINDS, weights)[0]
        question = ASK_HOPS[kind][0](context)
        if question is not None and (question.text not in asked or kind.startswith("back")):
            return replace(question, hop=ASK_HOPS[kind][2])
    raise AssertionError(f"no new question found about {[scene.caption for scene in context.scenes]}")

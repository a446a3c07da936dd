"""Longer dialogues out of rows (paper, section 5.1): joining, the LLaVA-Otter blend, and shuffled image numbers.

A composition is planned from identities and a seed alone, out of rows of one side of the split; the dialogue itself is
put together when it is asked for. Joining loses no row.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, overload

from visualchat.data.blend.origin import Origin, digest_of, joint_digest, place_of
from visualchat.data.sources.rows import Entry
from visualchat.dialogue import Dialogue, Turn
from visualchat.dialogue.image_references import insert_image

T = TypeVar("T")

_TRIES = 8  # draws of an image that the dialogue does not show itself

Corpora = Mapping[str, Sequence[Dialogue]]
"""Each source's dialogues by the source's name."""

Place = tuple[str, int]
"""A source's name and the place of a dialogue in it."""


class Recipe(Protocol):
    """How one dialogue is made of source dialogues."""

    @property
    def id(self) -> str:
        """Names the dialogue."""

    @property
    def places(self) -> tuple[Place, ...]:
        """Everything that it takes from."""

    def build(self, corpora: Corpora) -> Dialogue:
        """The dialogue."""


@dataclass(frozen=True)
class Joined:
    """Rows one after the other; images are numbered through."""

    id: str
    places: tuple[Place, ...]

    def build(self, corpora: Corpora) -> Dialogue:
        """The dialogue."""
        dialogues = [corpora[name][place] for name, place in self.places]
        return dialogues[0] if len(dialogues) == 1 else concatenate(dialogues, self.id)


@dataclass(frozen=True)
class Blended:
    """Dialogues about each image of a pair, then questions about the pair.

    Attributes:
        id: Names it.
        about: For the first images of the pair, in order, the dialogues about them; the first of each shows the image.
        pair: The dialogue about all images.
        rounds: Its rounds to take, in this order; the first shows the images that were not shown yet.
    """

    id: str
    about: tuple[tuple[Place, ...], ...]
    pair: Place
    rounds: tuple[int, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        return (*(place for places in self.about for place in places), self.pair)

    def build(self, corpora: Corpora) -> Dialogue:
        """The dialogue."""
        made: list[Turn] = []
        for places in self.about:
            for number, (name, place) in enumerate(places):
                dialogue = corpora[name][place]
                made += dialogue.turns if number == 0 else dialogue.without_images().turns
        pair = corpora[self.pair[0]][self.pair[1]]
        words = pair.without_images().turns
        asked = [words[number] for number in self.rounds]
        left = pair.images[len(self.about) :]
        made += [replace(asked[0], content=(*left, *asked[0].content)), *asked[1:]]
        return Dialogue(tuple(made), self.id, pair.system)


@dataclass(frozen=True)
class Widened:
    """Another recipe's dialogue with an unrelated image inserted before image `at`, if its words allow it."""

    base: Recipe
    donor: Place
    at: int

    @property
    def id(self) -> str:
        return f"{self.base.id} widened"

    @property
    def places(self) -> tuple[Place, ...]:
        return (*self.base.places, self.donor)

    def build(self, corpora: Corpora) -> Dialogue:
        """The dialogue."""
        dialogue = self.base.build(corpora)
        image = corpora[self.donor[0]][self.donor[1]].images[0]
        widened = insert_image(dialogue, image, self.at)
        return dialogue if widened is None else replace(widened, id=self.id)


class Composition(ABC):
    """A way to make a part of a blend from sources."""

    @abstractmethod
    def plan(
        self, entries: Mapping[str, Sequence[Entry]], side: Mapping[str, Sequence[int]], rng: random.Random
    ) -> Sequence[Recipe]:
        """The recipes of one side.

        Args:
            entries: Every source's dialogues.
            side: The places that may be used.
            rng: Seeded.

        Raises:
            ValueError: The sources do not fit the composition.
        """


@dataclass(frozen=True)
class Join(Composition):
    """`low` to `high` rows of a source in each dialogue, drawn at random (section 5.1.1); 1 to 1 for the rows alone."""

    source: str
    low: int = 1
    high: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ValueError(f"{self.source}: expected 1 <= low <= high rows to join, found {self.low} and {self.high}")

    def plan(
        self, entries: Mapping[str, Sequence[Entry]], side: Mapping[str, Sequence[int]], rng: random.Random
    ) -> Sequence[Recipe]:
        """One recipe a group; every row is in exactly one."""
        named, rows = entries[self.source], side[self.source]
        groups = None if self.high == 1 else group(len(rows), self.low, self.high, rng)
        return _Joins(self.source, named, rows, groups)


class _Joins(Sequence[Recipe]):
    """The recipes of `Join`, each made when it is asked for: there may be a million."""

    def __init__(
        self, source: str, named: Sequence[Entry], rows: Sequence[int], groups: Sequence[Sequence[int]] | None
    ) -> None:
        self.source, self.named, self.rows, self.groups = source, named, rows, groups

    def __len__(self) -> int:
        return len(self.rows if self.groups is None else self.groups)

    @overload
    def __getitem__(self, index: int) -> Recipe: ...
    @overload
    def __getitem__(self, index: slice) -> list[Recipe]: ...
    def __getitem__(self, index: int | slice) -> Recipe | list[Recipe]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        numbers = [index] if self.groups is None else self.groups[index]
        places = [self.rows[number] for number in numbers]
        names = " + ".join(self.named[place].id for place in places)
        return Joined(names, tuple((self.source, place) for place in places))


@dataclass(frozen=True)
class LlavaOtter(Composition):
    """The LLaVA-Otter blend (section 5.1.2).

    For each dialogue about several images, all of which but perhaps the last have dialogues of their own: one or more
    about each image in order (none or more about the last), then one or more rounds about all.

    Attributes:
        single: Sources with dialogues about one image.
        pairs: The source with dialogues about several.
    """

    single: Sequence[str]
    pairs: str

    def plan(
        self, entries: Mapping[str, Sequence[Entry]], side: Mapping[str, Sequence[int]], rng: random.Random
    ) -> Sequence[Recipe]:
        """One recipe for each dialogue about several images that can be served."""
        self._check(entries)
        about: dict[str, list[Place]] = {}
        for name in self.single:
            for place in side[name]:
                if len(images := entries[name][place].images) == 1:
                    about.setdefault(images[0], []).append((name, place))
        recipes: list[Recipe] = []
        for place in side[self.pairs]:
            entry = entries[self.pairs][place]
            if not entry.images or any(image not in about for image in entry.images[:-1]):
                continue  # the images would come in another order than the questions about them expect
            drawn = [
                _draw(about.get(image, ()), 0 if number == len(entry.images) else 1, rng)
                for number, image in enumerate(entry.images, start=1)
            ]
            rounds = _draw(range(len(entry.members)), 1, rng)
            served = tuple(places for places in drawn if places)
            recipes.append(Blended(f"blend of {entry.id}", served, (self.pairs, place), rounds))
        return recipes

    def _check(self, entries: Mapping[str, Sequence[Entry]]) -> None:
        shown = {image for name in self.single for entry in entries[name] for image in entry.images}
        paired = [image for entry in entries[self.pairs] for image in entry.images]
        if paired and shown and not any(image in shown for image in paired):
            raise ValueError(
                f"{self.pairs} and {', '.join(self.single)} share no image, so nothing can be blended; "
                f"{self.pairs} must read the COCO images (coco_folder)"
            )


@dataclass(frozen=True)
class ShuffledNumbers(Composition):
    """Image numbers that are not 1, 2, ...: an unrelated image inserted (section 5.2.4).

    The paper saw answers get worse and suspected wrong references. Here a dialogue changes only where each reference to
    an image is understood and rewritten; the others stay as they are.

    Attributes:
        of: The composition whose dialogues change.
        donors: The source whose first images are inserted.
        share: How many of the dialogues with two or more images.
    """

    of: Composition
    donors: str
    share: float = 0.5

    def plan(
        self, entries: Mapping[str, Sequence[Entry]], side: Mapping[str, Sequence[int]], rng: random.Random
    ) -> Sequence[Recipe]:
        """The recipes of the other composition, some of them widened."""
        donors = [(self.donors, place) for place in side[self.donors] if entries[self.donors][place].images]
        recipes = self.of.plan(entries, side, rng)
        if not donors:
            return recipes
        made: list[Recipe] = []
        for recipe in recipes:
            own = {image for name, place in recipe.places for image in entries[name][place].images}
            chosen = rng.random() < self.share
            drawn = rng.choices(donors, k=_TRIES)
            foreign = next((d for d in drawn if own.isdisjoint(entries[d[0]][d[1]].images)), None)
            wanted = chosen and foreign is not None and len(own) > 1
            made.append(Widened(recipe, foreign, rng.randrange(1, len(own))) if wanted and foreign else recipe)
        return made


class Composed(Sequence[Dialogue]):
    """The dialogues of recipes, each made when it is asked for.

    Args:
        corpora: What the recipes take from.
        recipes: One a dialogue.
        settings: All that the recipes depend on beside the corpora.
    """

    def __init__(self, corpora: Corpora, recipes: Sequence[Recipe], settings: str = "") -> None:
        self.corpora, self.recipes, self.settings = corpora, recipes, settings

    def place(self, index: int) -> str:
        """Where the rows of dialogue `index` lie, in words."""
        return " + ".join(place_of(source, number) for source, number in self.rows_in(index))

    def rows_in(self, index: int) -> tuple[Origin, ...]:
        """The dialogues of sources that dialogue `index` is made of."""
        return tuple((self.corpora[name], number) for name, number in dict.fromkeys(self.recipes[index].places))

    def digest(self) -> str:
        """A hash (hex) of the corpora and of how they are composed."""
        return joint_digest(self.settings, *((name, digest_of(part)) for name, part in self.corpora.items()))

    def __len__(self) -> int:
        return len(self.recipes)

    @overload
    def __getitem__(self, index: int) -> Dialogue: ...
    @overload
    def __getitem__(self, index: slice) -> list[Dialogue]: ...
    def __getitem__(self, index: int | slice) -> Dialogue | list[Dialogue]:
        if isinstance(index, slice):
            return [recipe.build(self.corpora) for recipe in self.recipes[index]]
        return self.recipes[index].build(self.corpora)


def group(count: int, low: int, high: int, rng: random.Random) -> list[list[int]]:
    """The numbers below `count` in random order, in groups of random size; the last may be smaller."""
    order = list(range(count))
    rng.shuffle(order)
    groups: list[list[int]] = []
    at = 0
    while at < count:
        size = rng.randint(low, high)
        groups.append(order[at : at + size])
        at += size
    return groups


def concatenate(dialogues: Sequence[Dialogue], id: str) -> Dialogue:
    """Dialogues one after the other, under the first one's system text."""
    return Dialogue(tuple(turn for dialogue in dialogues for turn in dialogue.turns), id, dialogues[0].system)


def _draw(options: Sequence[T], least: int, rng: random.Random) -> tuple[T, ...]:
    return tuple(rng.sample(options, rng.randint(min(least, len(options)), len(options))))

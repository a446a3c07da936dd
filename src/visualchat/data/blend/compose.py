"""Longer dialogues out of rows (paper, section 5.1): joining, the LLaVA-Otter blend, and shuffled image numbers.

The recipes of a composition depend on identities and a seed alone, out of rows of one split; the dialogue itself is
put together when it is asked for. Joining loses no row.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from visualchat.data.blend.origin import Origin, SourceRow, digest_of, joint_digest, place_of
from visualchat.data.sources.lazy import LazySequence
from visualchat.data.sources.rows import Entry
from visualchat.dialogue import Dialogue, Turn
from visualchat.dialogue.image_references import insert_image

T = TypeVar("T")

_TRIES = 8  # draws of an image that the dialogue does not show itself

Corpora = Mapping[str, Sequence[Dialogue]]
"""Each source's dialogues by the source's name."""


class Recipe(Protocol):
    """How one dialogue is made of source dialogues."""

    @property
    def id(self) -> str:
        """Names the dialogue."""

    @property
    def source_rows(self) -> tuple[SourceRow, ...]:
        """Everything that it takes from."""

    def build(self, corpora: Corpora) -> Dialogue:
        """The dialogue."""


@dataclass(frozen=True)
class JoinRecipe:
    """Rows one after the other; images are numbered through."""

    id: str
    source_rows: tuple[SourceRow, ...]

    def build(self, corpora: Corpora) -> Dialogue:
        """The dialogue."""
        dialogues = [corpora[name][index] for name, index in self.source_rows]
        return dialogues[0] if len(dialogues) == 1 else concatenate(dialogues, self.id)


@dataclass(frozen=True)
class LlavaOtterRecipe:
    """Dialogues about each image of a pair, then questions about the pair.

    Attributes:
        id: Names it.
        about: For the first images of the pair, in order, the dialogues about them; the first of each shows the image.
        pair: The dialogue about all images.
        rounds: Its rounds to take, in this order; the first shows the images that were not shown yet.
    """

    id: str
    about: tuple[tuple[SourceRow, ...], ...]
    pair: SourceRow
    rounds: tuple[int, ...]

    @property
    def source_rows(self) -> tuple[SourceRow, ...]:
        return (*(row for rows in self.about for row in rows), self.pair)

    def build(self, corpora: Corpora) -> Dialogue:
        """The dialogue."""
        turns: list[Turn] = []
        for rows in self.about:
            for n, (name, index) in enumerate(rows):
                dialogue = corpora[name][index]
                turns += dialogue.turns if n == 0 else dialogue.without_images().turns
        pair = corpora[self.pair[0]][self.pair[1]]
        words = pair.without_images().turns
        asked = [words[index] for index in self.rounds]
        not_shown = pair.images[len(self.about) :]
        turns += [replace(asked[0], content=(*not_shown, *asked[0].content)), *asked[1:]]
        return Dialogue(tuple(turns), self.id, pair.system)


@dataclass(frozen=True)
class InsertionRecipe:
    """Another recipe's dialogue with an unrelated image inserted before image `at`, if its words allow it."""

    base: Recipe
    donor: SourceRow
    at: int

    @property
    def id(self) -> str:
        return f"{self.base.id} widened"

    @property
    def source_rows(self) -> tuple[SourceRow, ...]:
        return (*self.base.source_rows, self.donor)

    def build(self, corpora: Corpora) -> Dialogue:
        """The dialogue."""
        dialogue = self.base.build(corpora)
        image = corpora[self.donor[0]][self.donor[1]].images[0]
        widened = insert_image(dialogue, image, self.at)
        return dialogue if widened is None else replace(widened, id=self.id)


class Composition(ABC):
    """A way to make a part of a blend from sources."""

    @abstractmethod
    def recipes(
        self, entries: Mapping[str, Sequence[Entry]], split: Mapping[str, Sequence[int]], rng: random.Random
    ) -> Sequence[Recipe]:
        """The recipes of one split.

        Args:
            entries: Every source's dialogues.
            split: The indexes that may be used.
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

    def recipes(
        self, entries: Mapping[str, Sequence[Entry]], split: Mapping[str, Sequence[int]], rng: random.Random
    ) -> Sequence[Recipe]:
        """One recipe a group; every row is in exactly one."""
        named, rows = entries[self.source], split[self.source]
        groups = None if self.high == 1 else group(len(rows), self.low, self.high, rng)
        return _JoinRecipes(self.source, named, rows, groups)


class _JoinRecipes(LazySequence[Recipe]):
    """The recipes of `Join`, each made when it is asked for: there may be a million."""

    def __init__(
        self, source: str, named: Sequence[Entry], rows: Sequence[int], groups: Sequence[Sequence[int]] | None
    ) -> None:
        self.source, self.named, self.rows, self.groups = source, named, rows, groups

    def __len__(self) -> int:
        return len(self.rows if self.groups is None else self.groups)

    def item(self, index: int) -> Recipe:
        """The recipe of group `index`."""
        rows = [self.rows[n] for n in ([index] if self.groups is None else self.groups[index])]
        names = " + ".join(self.named[row].id for row in rows)
        return JoinRecipe(names, tuple((self.source, row) for row in rows))


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

    def recipes(
        self, entries: Mapping[str, Sequence[Entry]], split: Mapping[str, Sequence[int]], rng: random.Random
    ) -> Sequence[Recipe]:
        """One recipe for each dialogue about several images that can be served."""
        self._check(entries)
        about: dict[str, list[SourceRow]] = {}
        for name in self.single:
            for index in split[name]:
                if len(images := entries[name][index].images) == 1:
                    about.setdefault(images[0], []).append((name, index))
        recipes: list[Recipe] = []
        for index in split[self.pairs]:
            entry = entries[self.pairs][index]
            if not entry.images or any(image not in about for image in entry.images[:-1]):
                continue  # the images would come in another order than the questions about them expect
            drawn = [
                _draw(about.get(image, ()), 0 if number == len(entry.images) else 1, rng)
                for number, image in enumerate(entry.images, start=1)
            ]
            rounds = _draw(range(len(entry.members)), 1, rng)
            served = tuple(rows for rows in drawn if rows)
            recipes.append(LlavaOtterRecipe(f"blend of {entry.id}", served, (self.pairs, index), rounds))
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

    def recipes(
        self, entries: Mapping[str, Sequence[Entry]], split: Mapping[str, Sequence[int]], rng: random.Random
    ) -> Sequence[Recipe]:
        """The recipes of the other composition, some of them widened."""
        donors = [(self.donors, index) for index in split[self.donors] if entries[self.donors][index].images]
        recipes = self.of.recipes(entries, split, rng)
        if not donors:
            return recipes
        changed: list[Recipe] = []
        for recipe in recipes:
            shown = {image for name, index in recipe.source_rows for image in entries[name][index].images}
            chosen = rng.random() < self.share
            drawn = rng.choices(donors, k=_TRIES)
            unrelated = next((d for d in drawn if shown.isdisjoint(entries[d[0]][d[1]].images)), None)
            if chosen and unrelated is not None and len(shown) > 1:
                changed.append(InsertionRecipe(recipe, unrelated, rng.randrange(1, len(shown))))
            else:
                changed.append(recipe)
        return changed


class ComposedDialogues(LazySequence[Dialogue]):
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
        return " + ".join(place_of(source, row) for source, row in self.rows_in(index))

    def rows_in(self, index: int) -> tuple[Origin, ...]:
        """The dialogues of sources that dialogue `index` is made of."""
        return tuple((self.corpora[name], row) for name, row in dict.fromkeys(self.recipes[index].source_rows))

    def digest(self) -> str:
        """A hash (hex) of the corpora and of how they are composed."""
        return joint_digest(self.settings, *((name, digest_of(part)) for name, part in self.corpora.items()))

    def __len__(self) -> int:
        return len(self.recipes)

    def item(self, index: int) -> Dialogue:
        """Dialogue `index`."""
        return self.recipes[index].build(self.corpora)


def group(count: int, low: int, high: int, rng: random.Random) -> list[list[int]]:
    """The indexes below `count` in random order, in groups of random size; the last may be smaller."""
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

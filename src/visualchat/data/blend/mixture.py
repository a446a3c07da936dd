"""Sources -> split -> compositions -> one mixture, in an order that is a function of seed and epoch alone.

Neither the number of workers nor of ranks enters the order: ranks take every n-th dialogue of the same list.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from visualchat.data.blend.compose import ComposedDialogues, Composition
from visualchat.data.blend.origin import Origin, digest_of, joint_digest, place_of, rows_in
from visualchat.data.blend.split import Split, SplitBy, split_sources
from visualchat.data.sources.base import Source
from visualchat.data.sources.lazy import LazySequence
from visualchat.data.sources.rows import Report
from visualchat.dialogue import Dialogue


class Mixture(LazySequence[Dialogue]):
    """Several sets of dialogues as one, with how much of each an epoch takes.

    Args:
        parts: The sets by name.
        weights: How many times an epoch goes through a part (0.5: half of it, the other half in the next epoch; 2:
            all of it twice); 1 for parts that are not named.
        counts: How many dialogues of a part an epoch takes, in place of a weight.

    Raises:
        ValueError: A weight or count is negative, is given twice, or names no part.
    """

    plain = False
    """Whether it is one data set, without parts to tell apart and without weights."""

    def __init__(
        self,
        parts: Mapping[str, Sequence[Dialogue]],
        weights: Mapping[str, float] | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        self.parts = dict(parts)
        weights, counts = dict(weights or {}), dict(counts or {})
        for name, amount in (*weights.items(), *counts.items()):
            if name not in self.parts:
                raise ValueError(f"a weight or count names the part {name!r}; the parts are {', '.join(self.parts)}")
            if amount < 0:
                raise ValueError(f"part {name}: a weight or count cannot be negative, found {amount}")
        if both := sorted(set(weights) & set(counts)):
            raise ValueError(f"part {both[0]} has both a weight and a count; give one of them")
        self.starts: dict[str, int] = {}
        self._size = 0
        self.wanted: dict[str, int] = {}
        for name, part in self.parts.items():
            self.starts[name] = self._size
            self._size += len(part)
            amount = counts[name] if name in counts else round(weights.get(name, 1.0) * len(part))
            self.wanted[name] = amount if len(part) else 0

    @staticmethod
    def of(dialogues: Sequence[Dialogue]) -> Mixture:
        """The dialogues, if they are a mixture; else one of a single part, all of which every epoch takes."""
        return dialogues if isinstance(dialogues, Mixture) else Whole(dialogues)

    @property
    def names(self) -> tuple[str, ...]:
        """What reports call the parts, by their indexes; none where there is nothing to tell apart."""
        return () if self.plain else tuple(self.parts)

    @property
    def epoch_size(self) -> int:
        """How many dialogues an epoch has."""
        return sum(self.wanted.values())

    def order(self, seed: int, epoch: int) -> list[int]:
        """The indexes of an epoch's dialogues, in order.

        A part goes through all of its dialogues before one comes again, also where an epoch takes only some.
        """
        indexes: list[int] = []
        for name, part in self.parts.items():
            start = self.starts[name]
            indexes += (start + n for n in turn_through(len(part), self.wanted[name], epoch, f"{seed} {name}"))
        random.Random(f"{seed} {epoch}").shuffle(indexes)
        return indexes

    def locate(self, index: int) -> tuple[str, int]:
        """The part that dialogue `index` is of, and its index there.

        Raises:
            IndexError: There is no such dialogue.
        """
        for name, part in self.parts.items():
            if 0 <= index - self.starts[name] < len(part):
                return name, index - self.starts[name]
        raise IndexError(f"index {index} is out of range for {self._size} dialogues")

    def source_of(self, index: int) -> int:
        """The index of the part that dialogue `index` is of."""
        return self._indexes[self.locate(index)[0]]

    @cached_property
    def _indexes(self) -> dict[str, int]:
        return {name: n for n, name in enumerate(self.parts)}

    def place(self, index: int) -> str:
        """Where the rows of dialogue `index` lie, in words."""
        name, inner = self.locate(index)
        return place_of(self.parts[name], inner)

    def rows_in(self, index: int) -> tuple[Origin, ...]:
        """The dialogues of sources that dialogue `index` is made of."""
        name, inner = self.locate(index)
        return rows_in(self.parts[name], inner)

    def digest(self) -> str:
        """A hash (hex) of all parts and of how much of each an epoch takes."""
        return joint_digest(*((name, digest_of(part), self.wanted[name]) for name, part in self.parts.items()))

    def __len__(self) -> int:
        return self._size

    def item(self, index: int) -> Dialogue:
        """Dialogue `index`."""
        name, inner = self.locate(index if index >= 0 else index + self._size)
        return self.parts[name][inner]


class Whole(Mixture):
    """A plain data set as a mixture of itself alone: every epoch takes all, shuffled as torch's own sampler does."""

    plain = True

    def __init__(self, dialogues: Sequence[Dialogue]) -> None:
        super().__init__({str(getattr(dialogues, "name", type(dialogues).__name__)): dialogues})
        self.dialogues = dialogues

    def order(self, seed: int, epoch: int) -> list[int]:
        """All indexes; the order of torch's DistributedSampler."""
        return permutation(len(self), seed, epoch)

    def digest(self) -> str:
        """A hash (hex) of the data set."""
        return digest_of(self.dialogues)


class Blend:
    """Sources and what is made of them: training and validation dialogues that share no source row.

    Args:
        sources: The corpora by name.
        parts: What is made of them, by name.
        validation: The share of source rows that validate.
        split_by: `row`, or `image` where dialogues that share an image must be in one split.
        seed: Of the split and of all draws.
        weights: Of parts in a training epoch, as in `Mixture`.
        counts: Of parts in a training epoch, as in `Mixture`.

    Raises:
        ValueError: On first use: a source cannot be read, a part does not fit, or a weight names no part.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        parts: Mapping[str, Composition],
        validation: float = 0.1,
        split_by: SplitBy = "row",
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        self.sources, self.parts = dict(sources), dict(parts)
        self.share, self.split_by, self.seed = validation, split_by, seed
        self.weights, self.counts = weights, counts

    @cached_property
    def train(self) -> Mixture:
        """The dialogues that train."""
        return Mixture(self._composed("train"), self.weights, self.counts)

    @cached_property
    def validation(self) -> Mixture:
        """The dialogues that validate: all of them, each once."""
        return Mixture(self._composed("validation"))

    def reports(self) -> list[Report]:
        """What became of each source's rows."""
        return [source.report() for source in self.sources.values()]

    def prepare(self) -> list[Report]:
        """Read and index everything that is read once; to be called by one process before others start."""
        return [source.prepare() for source in self.sources.values()]

    @cached_property
    def splits(self) -> dict[str, dict[Split, list[int]]]:
        """The indexes of each source's dialogues in each split."""
        entries = {name: source.entries for name, source in self.sources.items()}
        return split_sources(entries, self.share, self.split_by, str(self.seed))

    def _composed(self, split: Split) -> dict[str, ComposedDialogues]:
        entries = {name: source.entries for name, source in self.sources.items()}
        indexes = {name: splits[split] for name, splits in self.splits.items()}
        composed: dict[str, ComposedDialogues] = {}
        for name, part in self.parts.items():
            try:
                recipes = part.recipes(entries, indexes, random.Random(f"{self.seed} {split} {name}"))
            except KeyError as error:
                known = ", ".join(self.sources)
                raise ValueError(f"part {name} needs the source {error}; the sources are {known}") from error
            settings = repr((part, split, self.share, self.split_by, self.seed))
            composed[name] = ComposedDialogues(self.sources, recipes, settings)
        return composed


def permutation(count: int, seed: int, epoch: int) -> list[int]:
    """The order of `count` things in an epoch; the order of torch's own DistributedSampler."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


def turn_through(size: int, count: int, epoch: int, seed: str) -> list[int]:
    """Entries `epoch * count` to `(epoch + 1) * count` of an endless list: all below `size`, ever newly shuffled."""
    taken: list[int] = []
    at = epoch * count
    while len(taken) < count:
        round_, first = divmod(at, size)
        order = list(range(size))
        random.Random(f"{seed} {round_}").shuffle(order)
        part = order[first : first + count - len(taken)]
        taken += part
        at += len(part)
    return taken

"""Packing: several dialogues share a row of the length limit, so that next to no token is padding.

It needs the dialogues' lengths alone: best fit, longest first, dialogues of equal length in the epoch's order. So
other dialogues meet in every epoch, and the number of rows stays the same where every epoch takes all dialogues. Where
an epoch takes some of them (a mixture with weights), rows are split until there are as many as in the fullest epoch.
All is a pure function of lengths, seed and epoch.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np

from visualchat.data.blend.mixture import permutation

Row = tuple[int, ...]
"""The indexes of the dialogues that share a row."""

Order = Callable[[int, int], Sequence[int]]
"""(seed, epoch) -> the indexes of all dialogues of that epoch, in order."""


def best_fit(lengths: Sequence[int], capacity: int) -> list[int]:
    """The bin of each length, bins numbered from 0: each goes where least room would remain, a new bin if none has it.

    Args:
        lengths: In descending order, which packs best.
        capacity: Of a bin.

    Raises:
        ValueError: A length is over the capacity.
    """
    room: list[tuple[int, int]] = []  # (what is left of a bin, the bin), ascending
    bins: list[int] = []
    opened = 0
    for length in lengths:
        if length > capacity:
            raise ValueError(f"a dialogue of {length} tokens does not fit into a row of {capacity}")
        tightest = bisect_left(room, (length, -1))
        if tightest < len(room):
            left, chosen = room.pop(tightest)
        else:
            left, chosen, opened = capacity, opened, opened + 1
        bins.append(chosen)
        if left > length:
            insort(room, (left - length, chosen))
    return bins


@lru_cache(maxsize=1)
def _bins(lengths: bytes, capacity: int) -> list[int]:
    """`best_fit` of an int64 array's bytes; epochs of the same lengths share it."""
    return best_fit(np.frombuffer(lengths, dtype=np.int64).tolist(), capacity)


class Packing:
    """The packed rows of every epoch; see the module.

    Args:
        lengths: Tokens by the index of each dialogue; those that are not in it are never packed.
        capacity: The most tokens of a row.
        order: Which dialogues an epoch takes; all, shuffled, if None.
        seed: Of the order.
        epochs: How many epochs there will be, where they take different dialogues; None for a run without end, which
            plans for the first 20 and 1% more rows.

    Raises:
        ValueError: There is no dialogue, or one is over the capacity.
    """

    def __init__(
        self,
        lengths: Mapping[int, int],
        capacity: int,
        order: Order | None = None,
        seed: int = 0,
        epochs: int | None = 1,
    ) -> None:
        if not lengths:
            raise ValueError("there is no dialogue to pack, at least one is needed")
        self.lengths, self.capacity, self.seed, self.epochs = dict(lengths), capacity, seed, epochs
        self.order = order

    def _epoch(self, epoch: int) -> list[Row]:
        """The rows of an epoch, fullest first."""
        if self.order is None:
            known = list(self.lengths)
            indexes = [known[n] for n in permutation(len(known), self.seed, epoch)]
        else:
            indexes = [index for index in self.order(self.seed, epoch) if index in self.lengths]
        lengths = np.asarray([self.lengths[index] for index in indexes], dtype=np.int64)
        longest = np.argsort(-lengths, kind="stable")  # equal lengths stay in the epoch's order
        bins = np.asarray(_bins(lengths[longest].tobytes(), self.capacity))
        by_bin = np.argsort(bins, kind="stable")
        borders = np.flatnonzero(np.diff(bins[by_bin])) + 1
        return [tuple(row.tolist()) for row in np.split(np.asarray(indexes)[longest[by_bin]], borders)]

    @cached_property
    def _count(self) -> int:
        if self.order is None:
            return len(self._epoch(0))
        most = max(len(self._epoch(epoch)) for epoch in range(self.epochs or 20))
        return most if self.epochs else math.ceil(1.01 * most)

    def __len__(self) -> int:
        """The number of rows, the same in every epoch."""
        return self._count

    @cached_property
    def efficiency(self) -> float:
        """The share of real tokens in the first epoch's rows, filled up to the capacity, 0..1."""
        real = sum(self.lengths[index] for row in self._epoch(0) for index in row)
        return real / (len(self) * self.capacity)

    def rows(self, epoch: int) -> list[Row]:
        """The rows of an epoch; every dialogue that it takes stands in exactly one."""
        rows = self._epoch(epoch)
        surplus = len(rows) - len(self)
        if surplus > 0:
            raise ValueError(f"epoch {epoch} needs {surplus} rows more than the {self.epochs or 20} epochs planned for")
        while len(rows) < len(self) and max(map(len, rows)) > 1:
            fullest = max(range(len(rows)), key=lambda n: len(rows[n]))
            half = len(rows[fullest]) // 2
            rows[fullest : fullest + 1] = [rows[fullest][:half], rows[fullest][half:]]
        rows += [()] * (len(self) - len(rows))
        return [rows[n] for n in permutation(len(rows), self.seed, epoch)]

"""Which dialogues make up which batch: a pure function of seed, epoch, rank and the number of ranks.

Every dialogue stands in exactly one batch of one rank an epoch, and all ranks have the same number of batches: a rank
that runs out gets an idle batch, one without rows, because collectives need every rank in every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch.utils.data import Sampler

from visualchat.data.batching.packing import Order, Row
from visualchat.data.blend.mixture import permutation

RowsOfEpoch = Callable[[int, int], list[Row]]
"""(seed, epoch) -> all rows of that epoch, in order."""

POOL = 50
"""Steps whose rows are sorted together by `by_length`."""


@dataclass(frozen=True)
class BatchSpec:
    """One batch before anything of it is read.

    Attributes:
        rows: Its rows; none where the rank is idle in this step.
    """

    rows: tuple[Row, ...]


def rows_of(order: Order) -> RowsOfEpoch:
    """One dialogue a row."""
    return lambda seed, epoch: [(index,) for index in order(seed, epoch)]


def in_order(size: int) -> Order:
    """All dialogues, always in the order of the data."""
    return lambda seed, epoch: range(size)


def by_length(rows: RowsOfEpoch, lengths: Mapping[int, int], step: int) -> RowsOfEpoch:
    """The same rows in an order in which those of a step are about as long, so that little is padding.

    The epoch's order is cut into pools of `POOL` steps, each is sorted by length, and its steps are shuffled: what a
    step holds still changes from epoch to epoch.

    Args:
        rows: Gives the rows of an epoch, a dialogue each.
        lengths: Tokens by the index of each dialogue; one that is not in it counts as the shortest.
        step: Rows of a step on all ranks.
    """

    def grouped(seed: int, epoch: int) -> list[Row]:
        order = rows(seed, epoch)
        steps: list[list[Row]] = []
        for start in range(0, len(order), POOL * step):
            pool = sorted(order[start : start + POOL * step], key=lambda row: -lengths.get(row[0], 0))
            steps += [pool[first : first + step] for first in range(0, len(pool), step)]
        rest = [steps.pop()] if steps and len(steps[-1]) < step else []
        shuffled = [steps[n] for n in permutation(len(steps), seed, epoch)]
        return [row for of_step in [*shuffled, *rest] for row in of_step]

    return grouped


def batches_in(rows: int, batch_size: int, world_size: int) -> int:
    """The number of batches of an epoch, the same on every rank: of each one the longest share of the rows."""
    return math.ceil(math.ceil(rows / world_size) / batch_size)


def batches_of_rank(rows: list[Row], batch_size: int, rank: int, world_size: int) -> list[BatchSpec]:
    """The batches of one rank: the ranks take rows in turn, `batch_size` rows a batch."""
    share = rows[rank::world_size]
    steps = batches_in(len(rows), batch_size, world_size)
    return [BatchSpec(tuple(share[step * batch_size : (step + 1) * batch_size])) for step in range(steps)]


class ResumableBatchSampler(Sampler[BatchSpec]):
    """The sampler of a loader: yields the `BatchSpec`s of this rank, epoch by epoch, from anywhere in an epoch.

    It shares the rows out to the ranks itself, so the trainer must not (`use_distributed_sampler=False`).

    Args:
        rows: Gives the rows of an epoch.
        count: The number of rows, the same in every epoch.
        batch_size: Rows a batch.
        seed: Of the order.
        rank: Which share.
        world_size: Of how many.
        start: Epoch and batch to begin at; every later epoch begins at its start.
    """

    def __init__(
        self,
        rows: RowsOfEpoch,
        count: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        self.rows, self.count, self.batch_size, self.seed = rows, count, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.first = start

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return batches_in(self.count, self.batch_size, self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration gives this epoch: from `first` on if it is the present one, else from its start."""
        if epoch != self.epoch:
            self.epoch, self.first = epoch, 0

    def __iter__(self) -> Iterator[BatchSpec]:
        """The epoch's batches from `first` on."""
        # At once, not at the first `next`: Lightning makes the first iterator before it tells the epoch, and torch's
        # loader with workers makes it twice.
        batches = batches_of_rank(self.rows(self.seed, self.epoch), self.batch_size, self.rank, self.world_size)
        assert len(batches) == len(self)
        return iter(batches[self.first :])

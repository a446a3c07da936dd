"""One function applied to many items, shared by processes: what reads every dialogue once before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

S = TypeVar("S")
T = TypeVar("T")


class _Mapped(Dataset[T], Generic[S, T]):
    def __init__(self, function: Callable[[S], T], items: Sequence[S]) -> None:
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> T:
        return self.function(self.items[index])


def map_in_workers(
    function: Callable[[S], T], items: Sequence[S], num_workers: int, chunk_size: int = 32
) -> Iterator[T]:
    """What the function makes of each item, in order.

    Args:
        function: Of one item; what it raises ends the iteration.
        items: To read.
        num_workers: Processes that share the work; 0 for none beside this one.
        chunk_size: Items that a process takes at a time.
    """
    loader = DataLoader(
        _Mapped(function, items),
        batch_size=chunk_size,
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator(),  # seeds of workers come from here, not from the run's own random numbers
    )
    for results in loader:
        yield from results

"""A sequence whose items are made when they are asked for: millions of rows cost no more than where they lie."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

T_co = TypeVar("T_co", covariant=True)


class LazySequence(Sequence[T_co]):
    """Subclasses make one item; a slice is a list of them."""

    @abstractmethod
    def item(self, index: int) -> T_co:
        """Item `index`; from the end where it is negative.

        Raises:
            IndexError: There is none.
        """

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> list[T_co]: ...
    def __getitem__(self, index: int | slice) -> T_co | list[T_co]:
        if isinstance(index, slice):
            return [self.item(n) for n in range(*index.indices(len(self)))]
        return self.item(index)

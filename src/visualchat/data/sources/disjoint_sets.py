"""What a chain of pairs connects belongs together (union-find): rows that refer to rows, images shown together."""

from __future__ import annotations

from collections.abc import Iterable


class DisjointSets:
    """Sets of names that grow together; each is known by its smallest name."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def smallest(self, name: str) -> str:
        """The smallest name of the set that a name is in; a name that was never met is a set of its own."""
        above = self._above
        above.setdefault(name, name)
        while above[name] != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    def join(self, one: str, other: str) -> None:
        """Make one set of the sets of two names."""
        low, high = sorted((self.smallest(one), self.smallest(other)))
        self._above[high] = low

    def members(self) -> Iterable[str]:
        """Every name that was met, in that order."""
        return self._above.keys()

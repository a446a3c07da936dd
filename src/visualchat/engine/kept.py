"""Conversations that were computed before: a request continues the one with the longest common beginning."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from visualchat.model.growing_cache import GrowingCache

Name = tuple[Hashable, int]
"""What a token is: its id, or the hash of the image that it is of; and the number of its unit."""

MOST = 256
"""So many conversations are kept at most: each request is compared with all."""


@dataclass(frozen=True)
class Kept:
    """A conversation and its keys and values.

    Attributes:
        names: Of the tokens that the cache holds.
        cache: Never changed: who continues takes a copy, which shares the tensors.
        nbytes: Of the cache.
    """

    names: Sequence[Name]
    cache: GrowingCache
    nbytes: int


class KeptConversations:
    """Those that were used last, up to a budget, and `MOST`.

    Args:
        budget: Bytes.
        can_crop: Whether a cache can be cut to a beginning of its conversation.
    """

    def __init__(self, budget: int, can_crop: bool) -> None:
        self.budget, self.can_crop = budget, can_crop
        self.nbytes = 0
        self._model = ""
        self._kept: OrderedDict[int, Kept] = OrderedDict()
        self._next = 0

    def __len__(self) -> int:
        return len(self._kept)

    def beginning(self, names: Sequence[Name]) -> tuple[int, GrowingCache] | None:
        """How many tokens a kept conversation has in common with this one, but its last, and a cache of those."""
        best, found = 0, None
        for number, kept in self._kept.items():
            common = _common(kept.names, names[:-1])
            if common > best and (self.can_crop or common == len(kept.names)):
                best, found = common, number
        while 0 < best < len(names) and splits_unit(names, best):
            best -= 1
        if found is None or not best or (not self.can_crop and best < len(self._kept[found].names)):
            return None
        self._kept.move_to_end(found)
        kept = self._kept[found]
        cache = copy.copy(kept.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        if best < len(kept.names):
            cache.crop(best - len(kept.names))
        return best, cache

    def keep(self, names: Sequence[Name], cache: GrowingCache) -> None:
        """Keep a conversation in place of its own beginnings; what was not used for longest leaves."""
        nbytes = _nbytes(cache)
        if not names or nbytes > self.budget:
            return
        for number, kept in list(self._kept.items()):
            common = _common(kept.names, names)
            if common == len(names) and self.can_crop:  # there is a longer one
                self._kept.move_to_end(number)
                return
            if common == len(kept.names):
                self._drop(number)
        self._kept[self._next] = Kept(names, cache, nbytes)
        self._next += 1
        self.nbytes += nbytes
        while self.nbytes > self.budget or len(self._kept) > MOST:
            self._drop(next(iter(self._kept)))

    def of_model(self, state: str) -> None:
        """Forget all where the model is not what it was: `visualchat.engine.image_store.model_state` tells."""
        if state != self._model:
            self.clear()
        self._model = state

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self.nbytes = 0

    def _drop(self, number: int) -> None:
        self.nbytes -= self._kept.pop(number).nbytes


def splits_unit(names: Sequence[Name], place: int) -> bool:
    """Whether an image, or an image and its label, stand on both sides of a place."""
    (name, unit), other = names[place], names[place - 1]
    return unit == other[1] if unit >= 0 else isinstance(name, str) and names[place] == other


def _common(one: Sequence[Name], other: Sequence[Name]) -> int:
    """How many names two conversations begin with alike."""
    most = min(len(one), len(other))
    for start in range(0, most, 64):  # lists compare many times faster than their elements one by one
        end = min(start + 64, most)
        if one[start:end] != other[start:end]:
            return next(place for place in range(start, end) if one[place] != other[place])
    return most


def _nbytes(cache: GrowingCache) -> int:
    """Of all that a cache's tensors keep alive."""
    states = [getattr(layer, name) for layer in cache.layers for name in ("keys", "values")]
    return sum(tensor.untyped_storage().nbytes() for tensor in states if tensor is not None)

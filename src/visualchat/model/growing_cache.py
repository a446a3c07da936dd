"""transformers' growing cache, without copying it at each token: entries are written into room that waits behind them.

Copies of a layer (a fork of a conversation, a prefix that several continue) share their entries; whichever first grows
behind the end of what was written takes the room, the others move to a room of their own when they grow.

Shapes: B batch, H key heads, K entries, n new ones, D head size.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_claiming = threading.Lock()


@dataclass
class Room:
    """Memory for entries, shared by all layers whose first entries lie in it.

    Attributes:
        keys: (B, H, capacity, D).
        values: The same.
        taken: How many entries of it are written.
    """

    keys: Tensor
    values: Tensor
    taken: int

    @classmethod
    def for_entries(cls, length: int, keys: Tensor, values: Tensor) -> Room:
        """Room for so many entries like these (B, H, n, D) and an eighth more; nothing is written."""
        capacity = length + max(64, length // 8)
        of_keys, of_values = ((*states.shape[:2], capacity, states.shape[3]) for states in (keys, values))
        return cls(keys.new_empty(of_keys), values.new_empty(of_values), 0)

    def claim(self, length: int, end: int) -> bool:
        """Take the room behind the first `length` entries up to `end`; False if there is none or another has it."""
        if self.keys.is_inference() and not torch.is_inference_mode_enabled():  # torch refuses to write there
            return False
        with _claiming:
            free = self.taken == length and end <= self.keys.shape[2]
            self.taken = end if free else self.taken
        return free


class GrowingLayer(DynamicLayer):
    """A layer whose `keys` and `values` are the first entries of a room."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.room: Room | None = None
        self._inside: Tensor | None = None  # `keys` as of the last entry: others were not made here

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add entries (B, H, n, D) each; returns all."""
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        end = length + key_states.shape[2]
        room = self.room
        if room is None or self.keys is not self._inside or not room.claim(length, end):
            room = Room.for_entries(end, key_states, value_states)
            if length:
                assert self.keys is not None
                assert self.values is not None
                room.keys[:, :, :length], room.values[:, :, :length] = self.keys, self.values
        room.keys[:, :, length:end], room.values[:, :, length:end] = key_states, value_states
        return self.live_in(room, end)

    def live_in(self, room: Room, length: int) -> tuple[Tensor, Tensor]:
        """Make the first entries of a room this layer's; returns them."""
        room.taken, self.room = length, room
        keys, values = room.keys[:, :, :length], room.values[:, :, :length]
        self.keys, self.values, self._inside = keys, values, keys
        return keys, values

    def crop(self, tokens_to_remove: int) -> None:
        """As transformers' own; the entries stay in their room."""
        inside = self.keys is self._inside
        super().crop(tokens_to_remove)
        self._inside = self.keys if inside else None

    def reset(self) -> None:
        """As transformers' own."""
        super().reset()
        self.room = self._inside = None


class GrowingCache(DynamicCache):
    """`DynamicCache` of such layers, where a language model's layers keep all keys."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in self.layers]

    @property
    def keeps_all(self) -> bool:
        """Whether every layer keeps every key, so that the cache can be cut anywhere."""
        return all(isinstance(layer, GrowingLayer) for layer in self.layers)

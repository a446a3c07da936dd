"""The running batch: the keys and values of conversations of any length, one a row, that decode together.

All rows end at one column of a buffer that they share, as in a batch padded on the left, so a step writes one column;
in front of a row's entries stand zeros, or what a mask hides. Entries keep the order that they had in the row's own
cache: a new token's query sees all of its row. A row that leaves hands its place to the last one, so rows stay
together. Attention reads all rows from where the longest begins.

Shapes: R rows that there is room for, B those that are taken, H key heads, C columns that there is room for, K tokens
of the longest row with the one that is computed, D head size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from visualchat.dialogue.encoding import NO_UNIT
from visualchat.model import VisualChatForConditionalGeneration
from visualchat.model.growing_cache import GrowingCache

STEP = 64
"""Room for columns grows by so many at least."""


class Batch(Cache):
    """Rows that decode together.

    Attributes:
        lengths: How many entries each row has.
        end: The column behind them, where the next token goes.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []
        self.end = 0
        self.modality = torch.zeros(0, 0, dtype=torch.long)  # (R, C), a `Modality` each, of the entries

    @property
    def rows(self) -> int:
        """How many are taken."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Of all buffers."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._layers)

    @property
    def longest(self) -> int:
        """The entries of the longest row."""
        return max(self.lengths, default=0)

    @property
    def window(self) -> slice:
        """The K columns that a step reads."""
        return slice(self.end - self.longest, self.end + 1)

    @property
    def _layers(self) -> list[Any]:
        return self.layers

    def join(self, cache: GrowingCache, modality: Tensor) -> None:
        """Copy a conversation into a new row behind the others.

        Args:
            cache: Of that conversation alone.
            modality: (n,), a `Modality` each, of its entries, in their order.
        """
        length, row = cache.get_seq_length(), len(self.lengths)
        if not self._layers:
            self.layers = [_Layer(self, layer) for layer in cache.layers]
            self.modality = self.modality.to(modality.device)
        self._fit(row + 1, max(self.longest, length))
        columns = slice(self.end - length, self.end)
        for mine, layer in zip(self._layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                getattr(mine, name)[row, :, columns] = getattr(layer, name)[0]
        self.modality[row, columns] = modality
        self.lengths.append(length)

    def copy(self, row: int, into: GrowingCache) -> None:
        """Put a row's entries into an empty cache."""
        columns = slice(self.end - self.lengths[row], self.end)
        for number, layer in enumerate(self._layers):
            keys, values = (states[row : row + 1, :, columns] for states in (layer.keys, layer.values))
            into.update(keys, values, number)  # which copies

    def leave(self, row: int) -> None:
        """Give up a row; the last one takes its place."""
        last = len(self.lengths) - 1
        for states in (*(states for layer in self._layers for states in (layer.keys, layer.values)), self.modality):
            states[row] = states[last]
            states[last] = 0  # what is hidden by a mask must be finite still
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        self._fit(last, self.longest)

    @torch.no_grad()
    def decode(self, model: VisualChatForConditionalGeneration, tokens: list[int]) -> Tensor:
        """One more token in each row; logits (B, V) of the next. If it fails, the rows are as before."""
        rows, device = len(tokens), self.modality.device
        self._fit(rows, self.longest)
        lengths = torch.tensor(self.lengths, device=device)[:, None]
        modality = self.modality[:rows, self.window]
        real = torch.arange(modality.shape[1], device=device) >= self.longest - lengths
        ids = torch.tensor(tokens, device=device)[:, None]
        out = model(
            input_ids=ids,
            attention_mask=None if min(self.lengths) == self.longest else real,
            position_ids=lengths,
            mm_token_type_ids=torch.zeros_like(ids),
            key_modality=modality,
            unit_ids=torch.full_like(modality, NO_UNIT),  # text sees all units alike
            past_key_values=self,
            use_cache=True,
        )
        self.lengths, self.end = [length + 1 for length in self.lengths], self.end + 1
        logits: Tensor = out.logits[:, -1]
        return logits

    def _fit(self, rows: int, longest: int) -> None:
        """Make room for so many rows of up to so many entries and a token more; give back what is far more."""
        room_rows, columns = self.modality.shape
        enough = rows <= room_rows and longest <= self.end < columns
        few = room_rows <= max(4, 4 * rows) and columns <= max(2 * STEP, 4 * longest)
        if enough and few and rows:
            return
        room = (1 << (rows - 1).bit_length(), -(-(longest * 5 // 4 + STEP) // STEP) * STEP) if rows else (0, 0)
        taken, held = len(self.lengths), self.longest
        old, new = slice(self.end - held, self.end), slice(longest - held, longest)

        def moved(states: Tensor, dim: int) -> Tensor:
            """`states` with so much room, the taken rows' entries at their new columns, zeros elsewhere."""
            shape = [*states.shape]
            shape[0], shape[dim] = room
            found, before = states.new_zeros(shape), (slice(None),) * (dim - 1)
            found[:taken][(slice(None), *before, new)] = states[:taken][(slice(None), *before, old)]
            return found

        buffers = [(moved(layer.keys, 2), moved(layer.values, 2)) for layer in self._layers]
        self.modality, self.end = moved(self.modality, 1), longest
        for layer, (keys, values) in zip(self._layers, buffers, strict=True):  # there was memory for all of them
            layer.keys, layer.values = keys, values


class _Layer(CacheLayerMixin):
    """The buffers (R, H, C, D) of one layer."""

    def __init__(self, batch: Batch, like: Any) -> None:
        super().__init__()
        self.batch = batch
        self.keys, self.values = (states.new_zeros(0, states.shape[1], 0, states.shape[3]) for states in _states(like))
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: buffers are made when a row joins."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put each row's new token (B, H, 1, D) behind its entries; all that a step reads, (B, H, K, D)."""
        assert self.keys is not None
        assert self.values is not None
        rows = len(key_states)
        self.keys[:rows, :, self.batch.end] = key_states[:, :, 0]
        self.values[:rows, :, self.batch.end] = value_states[:, :, 0]
        return self.keys[:rows, :, self.batch.window], self.values[:rows, :, self.batch.window]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """transformers' hook: how many keys a mask covers, and from which on."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """The entries of the longest row."""
        return self.batch.longest

    def get_max_length(self) -> int:
        """There is no limit."""
        return -1


def _states(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.keys, layer.values

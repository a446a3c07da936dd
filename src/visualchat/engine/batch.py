"""The running batch: the keys and values of conversations of any length, one a row, that decode together.

Each row has its entries at the start of a buffer that all rows share, in the order in which its own cache had them, and
zeros behind them; a mask tells how many there are. A new token's query sees all entries of its row, so their order does
not matter. A row that leaves hands its place to the last one, so rows stay together. Attention reads all rows up to the
length of the longest.

Shapes: R rows that there is room for, B those that are taken, H key heads, C tokens that there is room for, K tokens of
the longest row with the one that is computed, D head size, V vocabulary.
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
"""Room for tokens grows by so many at least."""


class Batch(Cache):
    """Rows that decode together.

    Attributes:
        lengths: How many entries each row has.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []
        self.modality = torch.zeros(0, 0, dtype=torch.long)  # (R, C), a `Modality` each, of the entries
        self.behind = torch.zeros(0, dtype=torch.long)  # (B,), where the token stands that is computed

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
        return max(self.lengths)

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
        self._fit([*self.lengths, length])
        for mine, layer in zip(self._layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                getattr(mine, name)[row, :, :length] = getattr(layer, name)[0]
        self.modality[row, :length] = modality
        self.lengths.append(length)

    def copy(self, row: int, into: GrowingCache) -> None:
        """Put a row's entries into an empty cache."""
        length = self.lengths[row]
        for number, layer in enumerate(self._layers):
            keys, values = (states[row : row + 1, :, :length] for states in (layer.keys, layer.values))
            into.update(keys, values, number)  # which copies

    def leave(self, row: int) -> None:
        """Give up a row; the last one takes its place."""
        last = len(self.lengths) - 1
        for states in (*(states for layer in self._layers for states in (layer.keys, layer.values)), self.modality):
            states[row] = states[last]
            states[last] = 0  # what is hidden by a mask must be finite still
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        self._fit(self.lengths)

    @torch.no_grad()
    def decode(self, model: VisualChatForConditionalGeneration, tokens: list[int]) -> Tensor:
        """One more token in each row; logits (B, V) of the next. If it fails, the rows are as before."""
        self._fit([length + 1 for length in self.lengths])
        rows, columns, device = len(tokens), self.longest + 1, self.modality.device
        self.behind = torch.tensor(self.lengths, device=device)
        alike = min(self.lengths) == self.longest
        ids = torch.tensor(tokens, device=device)[:, None]
        out = model(
            input_ids=ids,
            attention_mask=None if alike else torch.arange(columns, device=device) <= self.behind[:, None],
            position_ids=self.behind[:, None],
            mm_token_type_ids=torch.zeros_like(ids),
            key_modality=self.modality[:rows, :columns],
            unit_ids=torch.full((rows, columns), NO_UNIT, device=device),  # text sees all units alike
            past_key_values=self,
            use_cache=True,
        )
        self.lengths = [length + 1 for length in self.lengths]
        logits: Tensor = out.logits[:, -1]
        return logits

    def _fit(self, lengths: list[int]) -> None:
        """Make room for rows of these lengths, and give back what is far more than that."""
        rows, tokens = self.modality.shape
        most = max(lengths, default=0)
        if len(lengths) <= rows <= max(4, 4 * len(lengths)) and most <= tokens <= max(2 * STEP, 4 * most) and lengths:
            return
        room = (1 << (len(lengths) - 1).bit_length() if lengths else 0, -(-most * 5 // 4 // STEP) * STEP)
        taken = len(self.lengths)
        new = [_resized(states, room, taken, 2) for layer in self._layers for states in (layer.keys, layer.values)]
        self.modality = _resized(self.modality, room, taken, 1)
        for number, layer in enumerate(self._layers):  # all at once: there may have been no memory for one of them
            layer.keys, layer.values = new[2 * number : 2 * number + 2]


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
        """Put each row's new token (B, H, 1, D) behind its entries; all up to the longest row's, (B, H, K, D)."""
        assert self.keys is not None
        assert self.values is not None
        rows, columns = len(key_states), self.batch.longest + 1
        behind = self.batch.behind.to(key_states.device)
        here = torch.arange(rows, device=behind.device)
        self.keys[here, :, behind] = key_states[:, :, 0]
        self.values[here, :, behind] = value_states[:, :, 0]
        return self.keys[:rows, :, :columns], self.values[:rows, :, :columns]

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


def _resized(states: Tensor, room: tuple[int, int], taken: int, dim: int) -> Tensor:
    """A tensor with other R and C, which is its dimension `dim`, zeros where it was not; its first rows are `taken`."""
    shape = [*states.shape]
    shape[0], shape[dim] = room
    new, tokens = states.new_zeros(shape), min(room[1], states.shape[dim])
    new[:taken].narrow(dim, 0, tokens).copy_(states[:taken].narrow(dim, 0, tokens))
    return new

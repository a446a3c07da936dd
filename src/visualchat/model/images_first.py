"""A cache that keeps the images of a conversation first and its text behind them.

A kind with two softmaxes then decodes by two mask-free attentions, each over its own stretch of the keys, at about the
cost of causal attention (`visualchat.attention.sdpa_plan.Sides`). Keys are cached after rotary embedding, so where they
stand in the cache does not matter, as long as ids and masks are told in the same order. In a batch each row has its
images first; where counts differ, the stretches overlap and a small mask tells.

Shapes: B batch, H key heads, K tokens of the conversation so far, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from visualchat.attention import KINDS, Modality
from visualchat.model.configuration_visualchat import VisualChatConfig


class ImagesFirstCache(DynamicCache):
    """transformers' growing cache whose entries the model puts in this order after each call with images.

    Attributes:
        order: (B, n), where in the conversation each of the first n entries stands; entries behind them stand at
            their own place. None where all do. Where images were put in before the text around them, it tells the
            places of that text too, whose states are still to come.
    """

    order: Tensor | None = None

    def arrange(self, modality: Tensor) -> None:
        """Put images first, in each row.

        Args:
            modality: (B, K), a `Modality` each, in the order of the conversation.
        """
        order = self._order(modality)
        self._move(order, (modality.gather(1, order) != Modality.IMAGE).to(torch.uint8).argsort(dim=1, stable=True))

    @property
    def awaits_text(self) -> bool:
        """Whether the next tokens stand between entries, at places that `order` tells."""
        return self.order is not None and self.order.shape[1] > self.get_seq_length()

    def insert(self, keys: Tensor, values: Tensor, places: Tensor, modality: Tensor) -> None:
        """Put in states that were computed elsewhere; the text around them is to come, in one call.

        Args:
            keys: (layers, H, n, D), rotated to their places.
            values: (layers, H, n, D).
            places: (n,), where in the conversation they stand, rising.
            modality: (K,), a `Modality` each, of the conversation up to the end of the text to come.
        """
        before = self.get_seq_length()
        for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
            self.update(key[None], value[None], layer)
        order = torch.cat([self._order(places.new_empty(1, before)), places[None]], 1)
        index = (modality[order] != Modality.IMAGE).to(torch.uint8).argsort(dim=1, stable=True)
        self._move(order, index)
        coming = torch.ones_like(modality, dtype=torch.bool)
        coming[order[0]] = False
        self.order = torch.cat([order.gather(1, index), coming.nonzero().T], 1)

    def in_order(self, ids: Tensor) -> Tensor:
        """Ids (B, K) in the order of the conversation, put in that of the entries; new tokens stand behind them."""
        return ids if self.order is None else ids.gather(1, self._order(ids))

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens of the conversation, given as a negative number; images stay first."""
        if self.order is not None:
            length = self.get_seq_length()
            order, left = self._order(self.order.new_empty(len(self.order), length)), length + tokens_to_remove
            index = (order >= left).to(torch.uint8).argsort(dim=1, stable=True)
            self._move(order, index)
            self.order = order.gather(1, index)[:, :left]
        super().crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """As transformers' own, for beams."""
        super().reorder_cache(beam_idx)
        self.order = None if self.order is None else self.order.index_select(0, beam_idx.to(self.order.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """As transformers' own."""
        super().batch_repeat_interleave(repeats)
        self.order = None if self.order is None else self.order.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """As transformers' own."""
        super().batch_select_indices(indices)
        self.order = None if self.order is None else self.order[indices]

    def reset(self) -> None:
        """As transformers' own."""
        super().reset()
        self.order = None

    def _order(self, ids: Tensor) -> Tensor:
        """`order` as long as `ids` (B, K)."""
        rows, length = ids.shape
        known = 0 if self.order is None else self.order.shape[1]
        behind = torch.arange(known, length, device=ids.device).expand(rows, -1)
        return behind if self.order is None else torch.cat([self.order, behind], 1)

    def _move(self, order: Tensor, index: Tensor) -> None:
        """Make entry `index[b, i]` of each row its i-th; `order` (B, K) is theirs so far."""
        here = torch.arange(index.shape[1], device=index.device)
        if (index == here).all():
            return
        alike = bool((index == index[:1]).all())
        for layer in self.layers:
            for name in ("keys", "values"):
                states = getattr(layer, name)  # (B, H, K, D)
                own = index.to(states.device)
                moved = states.index_select(2, own[0]) if alike else states.take_along_dim(own[:, None, :, None], 2)
                setattr(layer, name, moved)
        order = order.gather(1, index)
        self.order = None if (order == here).all() else order


def new_cache(config: VisualChatConfig) -> DynamicCache:
    """An empty cache for a conversation: images first where the configured kind has two softmaxes."""
    text_config: Any = config.text_config
    plain = DynamicCache(config=text_config)
    if config.images_outside or KINDS[config.attention_kind].softmax == "joint":
        return plain
    movable = all(type(layer) is DynamicLayer for layer in plain.layers)
    return ImagesFirstCache(config=text_config) if movable else plain

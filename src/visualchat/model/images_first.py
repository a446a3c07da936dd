"""A cache that keeps the images of a conversation first and its text behind them.

A kind with two softmaxes then decodes by two mask-free attentions, each over its own stretch of the keys, at about the
cost of causal attention (`visualchat.attention.sdpa_plan.Sides`). Keys are cached after rotary embedding, so where they
stand in the cache does not matter, as long as ids and masks are told in the same order. In a batch each row has its
images first; where counts differ, the stretches overlap and a small mask tells.

Shapes: B batch, H key heads, K tokens of the conversation so far, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visualchat.attention import Modality
from visualchat.model.configuration_visualchat import VisualChatConfig
from visualchat.model.growing_cache import GrowingCache, GrowingLayer, Room

PutKeys = Callable[[Tensor, slice, Tensor], None]
"""Puts keys (H, m, D) of some of an insertion's tokens, named by a slice, rotated to their places, into (H, m, D)."""


@dataclass(frozen=True)
class Insertion:
    """States of neighbouring tokens that were computed elsewhere.

    Attributes:
        place: Where in the conversation the first of them stands.
        text: How many of them, the first ones, are text.
        states: Keys and values of all layers (2, L, H, n, D).
        turn: Rotates the keys; None where they are rotated already.
    """

    place: int
    text: int
    states: Tensor
    turn: PutKeys | None

    @property
    def length(self) -> int:
        """How many tokens there are."""
        return self.states.shape[3]

    def places(self, device: torch.device) -> Tensor:
        """Where its tokens stand, (n,)."""
        return torch.arange(self.place, self.place + self.length, device=device)

    def put(self, number: int, part: slice, keys: Tensor, values: Tensor) -> None:
        """Write a layer, by its number, of some of the tokens, m in number, into keys and values (H, m, D)."""
        given = self.states[0, number, :, part]
        if self.turn is None:
            keys.copy_(given)
        else:
            self.turn(given, part, keys)
        values.copy_(self.states[1, number, :, part])


class ImagesFirstCache(GrowingCache):
    """A growing cache whose entries the model puts in this order after each call with images.

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

    def insert(self, given: Sequence[Insertion], modality: Tensor) -> None:
        """Put in states that were computed elsewhere; the text around them is to come, in one call.

        Every entry is written once, into new room.

        Args:
            given: In the order of the conversation, behind all that the cache holds; each is text, then of an image.
            modality: (K,), a `Modality` each, of the conversation up to the end of the text to come.
        """
        before = self.get_seq_length()
        held = self._order(modality.new_empty(1, before))[0]
        images = int((modality[held] == Modality.IMAGE).sum())
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, GrowingLayer)
            _refill(layer, number, given, images, len(modality))
        labels, new = zip(*(each.places(held.device).tensor_split([each.text]) for each in given), strict=True)
        known = torch.cat([held[:images], *new, held[images:], *labels])
        coming = torch.ones_like(modality, dtype=torch.bool)
        coming[known] = False
        self.order = torch.cat([known, coming.nonzero()[:, 0]])[None]

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


def _refill(layer: GrowingLayer, number: int, given: Sequence[Insertion], images: int, length: int) -> None:
    """Write a layer's entries and those given into new room for `length`: images, old text, the given ones' text."""
    held = layer.get_seq_length()
    image, text = images, held + sum(each.length - each.text for each in given)
    like = given[0].states[:, number]
    room = Room.for_entries(length, like[:1], like[1:])
    for each in given:
        for part, begin in ((slice(each.text), text), (slice(each.text, each.length), image)):
            if count := len(range(each.length)[part]):
                into = slice(begin, begin + count)
                each.put(number, part, room.keys[0, :, into], room.values[0, :, into])
        image, text = image + each.length - each.text, text + each.text
    if held:
        assert layer.keys is not None
        assert layer.values is not None
        for ours, theirs in ((room.keys, layer.keys), (room.values, layer.values)):
            ours[:, :, :images] = theirs[:, :, :images]
            ours[:, :, image : image + held - images] = theirs[:, :, images:]
    elif not layer.is_initialized:
        layer.lazy_initialization(room.keys, room.values)
    layer.live_in(room, text)


def new_cache(config: VisualChatConfig) -> GrowingCache:
    """An empty cache for a conversation: images first where the configured kind has two softmaxes."""
    plain = GrowingCache(config.text_config)
    if all(kind.softmax == "joint" for kind in config.layer_kinds):
        return plain
    return ImagesFirstCache(config.text_config) if plain.keeps_all else plain

"""From a conversation's tokens to an answer's: what is new is computed on top of a cache, then token by token.

Where an image's states are its own, they come from an `ImageStore`, all at once, with the text that opens the
conversation, before the text around them is computed in one pass; otherwise images are computed in their place, and
only what precedes them is reused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from visualchat.engine.image_store import ImageKeys, ImageStore
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.configuration_visualchat import VisualChatConfig
from visualchat.model.growing_cache import GrowingCache
from visualchat.model.image_states import Unit, in_place, opening_states, unit_states, units_from, why_not_own
from visualchat.model.images_first import ImagesFirstCache, Insertion, new_cache


@dataclass(frozen=True)
class Tokens:
    """A conversation up to an answer; one entry a token.

    Attributes:
        ids: Token ids.
        modality: A `Modality` each.
        units: The number of the image that a token is of or labels, else -1.
    """

    ids: list[int]
    modality: list[int]
    units: list[int]


def image_size(config: VisualChatConfig) -> int:
    """How many tokens an image takes in a conversation."""
    return 1 if config.images_outside else config.image_seq_length


def require_own(processor: VisualChatProcessor, model: VisualChatForConditionalGeneration) -> None:
    """Refuse a processor of another model, whose images would fill other places.

    Raises:
        ValueError: It is one.
    """
    if processor.image_seq_length != (size := image_size(model.config)):
        raise ValueError(
            f"the processor gives an image {processor.image_seq_length} tokens, the model takes {size}: load both from "
            "one folder"
        )


class Answerer:
    """A model with its processor, and the images that it knows.

    Args:
        model: Answers.
        processor: Of the same model.
        store: Where its images' states are kept.

    Attributes:
        why_not_stored: Why images do not come from the store; None where they do.
    """

    def __init__(
        self, model: VisualChatForConditionalGeneration, processor: VisualChatProcessor, store: ImageStore
    ) -> None:
        self.model, self.processor, self.store = model, processor, store
        self.keys = ImageKeys(model, processor.image_processor.to_json_string())
        self.why_not_stored = why_not_own(model)

    def new_cache(self) -> GrowingCache:
        """An empty cache for a conversation."""
        if self.why_not_stored is None:
            return ImagesFirstCache(self.model.config.text_config)
        return new_cache(self.model.config)

    def pixels(self, images: list[Image.Image]) -> Tensor:
        """What the encoder takes, (N, 3, height, width)."""
        found: Tensor = self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        return found.to(self.model.device)

    @torch.no_grad()
    def prefill(self, tokens: Tokens, images: list[Image.Image], cache: GrowingCache) -> Tensor:
        """Logits (1, V) of the next token; `images` are those of the tokens that are not in the cache.

        Where all of those come from the store, nothing is computed, and there are no logits, (0, V).
        """
        if images and self.why_not_stored is None:
            places = self.insert(tokens, images, cache)
            if not len(places):
                return torch.empty(0, self.model.get_input_embeddings().num_embeddings, device=self.model.device)
            return self.compute(tokens, places, cache)
        places = torch.arange(cache.get_seq_length(), len(tokens.ids), device=self.model.device)
        return self.compute(tokens, places, cache, self.pixels(images) if images else None)

    def compute(
        self, tokens: Tokens, places: Tensor, cache: GrowingCache, pixel_values: Tensor | None = None
    ) -> Tensor:
        """Logits (1, V) of the next token, from the tokens at these places (T,) on top of a cache."""
        device = self.model.device
        modality = torch.tensor(tokens.modality, device=device)
        out = self.model(
            input_ids=torch.tensor(tokens.ids, device=device)[places][None],
            pixel_values=pixel_values,
            mm_token_type_ids=modality[places][None],
            key_modality=modality[None],
            unit_ids=torch.tensor([tokens.units], device=device),
            position_ids=places[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1]
        return logits

    def insert(self, tokens: Tokens, images: list[Image.Image], cache: GrowingCache) -> Tensor:
        """Put images into the cache, and what opens a conversation; returns where the text around them stands, (T,)."""
        assert isinstance(cache, ImagesFirstCache)
        start, device = cache.get_seq_length(), self.model.device
        units = units_from(self.model, tokens.ids, tokens.modality, tokens.units, start)
        pairs = list(zip(images, units, strict=True))
        opening = [] if start else tokens.ids[: units[0].place]
        keys, opening_key = self.keys.of(pairs, opening)
        states = [
            self.store.get(key, device, partial(self._compute, image, unit))
            for key, (image, unit) in zip(keys, pairs, strict=True)
        ]
        given = in_place(self.model, units, states)
        if opening:
            given = [self._opening(opening_key, opening), *given]
        cache.insert(given, torch.tensor(tokens.modality, device=device))
        assert cache.order is not None
        return cache.order[0, cache.get_seq_length() :]

    def know(self, tokens: Tokens, images: list[Image.Image]) -> bool:
        """Compute the states of images in their units, unless the store has them; whether it has room for all."""
        units = units_from(self.model, tokens.ids, tokens.modality, tokens.units, 0)
        pairs = list(zip(images, units, strict=True))
        keys, _ = self.keys.of(pairs, [])
        for key, (image, unit) in zip(keys, pairs, strict=True):
            self.store.get(key, self.model.device, partial(self._compute, image, unit))
        return all(key in self.store for key in keys)

    def _opening(self, key: str, ids: list[int]) -> Insertion:
        """The text before a conversation's first image, as a rule the system text: the same in many conversations.

        Like images it is computed alone, whether it is known or not.
        """
        states = self.store.get_opening(key, self.model.device, partial(opening_states, self.model, ids))
        return Insertion(0, len(ids), states, None)

    def _compute(self, image: Image.Image, unit: Unit) -> Tensor:
        return unit_states(self.model, unit, self.pixels([image]))

    @torch.no_grad()
    def following(self, token: int, cache: GrowingCache) -> Tensor:
        """Logits (1, V) after one more token of the answer."""
        ids = torch.tensor([[token]], device=self.model.device)
        logits: Tensor = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1]
        return logits

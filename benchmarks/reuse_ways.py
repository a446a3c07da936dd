"""Answers about known images, in every way of knowing them: the same code is scored (exact match) and timed.

    prefix reuse    any kind: nothing is kept of images but the encoder's features; of a new conversation a cache of
                    prefixes holds the text before the first image, all else is computed in one pass
    known images    kinds whose images have states of their own: these are put in place, text alone is computed
    turned          causal: states that each image has alone are put in place as if they were its own
    k recomputed    causal: as turned, but the first k tokens of each image are computed in place with the text, the way
                    of MPIC (arXiv 2502.01960)

The first two give the answers of one pass over the whole conversation; the others do not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from visualchat.attention import Modality
from visualchat.dialogue.encoding import NO_UNIT
from visualchat.engine.answering import Answerer, Tokens
from visualchat.engine.image_store import ImageStore
from visualchat.images.feature_store import image_key
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.growing_cache import GrowingCache
from visualchat.model.image_states import Unit, in_place, opening_states, units_from, why_not_own
from visualchat.model.images_first import ImagesFirstCache, Insertion

SHARES = {"turned": 0.0, "1/16 recomputed": 1 / 16, "1/4 recomputed": 1 / 4, "1/2 recomputed": 1 / 2}
"""Ways of a causal model, and the share of each image's tokens, its first ones, that each computes in place."""


class Way(Protocol):
    """A model with what it keeps of images.

    Attributes:
        exact: Whether its answers are those of one pass over the whole conversation.
    """

    exact: bool

    def logits(self, tokens: Tokens, images: list[Image.Image], asked: Tensor) -> Tensor:
        """(asked, V), of what follows the tokens at these places; all images are known, or become so."""
        ...

    @property
    def unknown(self) -> int:
        """How many images were computed because they were not known."""
        ...


def ways_of(
    name: str, model: VisualChatForConditionalGeneration, processor: VisualChatProcessor, budget: int
) -> dict[str, Way]:
    """What can be done with a model, by name: `name` is the exact one, whatever else begins with it.

    Args:
        name: The model's.
        model: In evaluation mode.
        processor: Its own.
        budget: The most bytes that are kept of images.
    """
    if why_not_own(model) is None:
        return {name: KnownImages(Answerer(model, processor, ImageStore(budget, 0)))}
    config = model.config
    found: dict[str, Way] = {name: PrefixReuse(Answerer(model, processor, ImageStore(budget, 0)))}
    if config.plain_causal and not config.images_outside and config.image_positions == "running":
        alone = ImagesAlone(model, processor, budget)
        found |= {f"{name}, {way}": Recomputed(alone, share) for way, share in SHARES.items()}
    return found


def one_pass(
    model: VisualChatForConditionalGeneration,
    tokens: Tokens,
    places: Tensor,
    asked: Tensor,
    cache: GrowingCache,
    **inputs: Any,
) -> Tensor:
    """Logits (asked, V) behind the tokens at `asked`, in order, from those at `places` on top of a cache.

    Args:
        model: In evaluation mode.
        tokens: Of the whole conversation.
        places: (T,), in order, of what the cache does not hold.
        asked: Some of them.
        cache: Of all others.
        **inputs: Of the model, beside `input_ids` where `inputs_embeds` are not among them.
    """
    if "inputs_embeds" not in inputs:
        inputs["input_ids"] = torch.tensor(tokens.ids)[places][None]
    modality = torch.tensor(tokens.modality)
    out = model(
        mm_token_type_ids=modality[places][None],
        key_modality=modality[None],
        unit_ids=torch.tensor([tokens.units]),
        position_ids=places[None],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=torch.isin(places, asked).nonzero()[:, 0],
        **inputs,
    )
    logits: Tensor = out.logits[0]
    assert len(logits) == len(asked), "answers follow text that is computed"
    return logits


@dataclass
class KnownImages:
    """Images' own states from a store, as a chat and a server take them.

    Attributes:
        answerer: With its store.
    """

    answerer: Answerer
    exact: bool = True

    def logits(self, tokens: Tokens, images: list[Image.Image], asked: Tensor) -> Tensor:
        """See `Way`."""
        cache = self.answerer.new_cache()
        places = self.answerer.insert(tokens, images, cache)
        return one_pass(self.answerer.model, tokens, places, asked, cache)

    @property
    def unknown(self) -> int:
        """See `Way`."""
        return self.answerer.store.stats.misses


@dataclass
class PrefixReuse:
    """The encoder's features of known images, and the states of the text before the first one.

    Attributes:
        answerer: With a store, of features.
        openings: By the ids of such a text, its states (2, L, H, n, D).
    """

    answerer: Answerer
    exact: bool = True
    openings: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def logits(self, tokens: Tokens, images: list[Image.Image], asked: Tensor) -> Tensor:
        """See `Way`."""
        model, device = self.answerer.model, self.answerer.model.device
        store = self.answerer.store
        features = [store.get(image_key(image), device, partial(self._features, image)) for image in images]
        begins = next(place for place, unit in enumerate(tokens.units) if unit != NO_UNIT)
        opening = tuple(tokens.ids[:begins])
        if opening not in self.openings:
            self.openings[opening] = opening_states(model, [*opening])
        cache = GrowingCache(model.config.text_config)
        for layer, keys, values in zip(cache.layers, *self.openings[opening], strict=True):
            layer.update(keys[None], values[None])
        places = torch.arange(begins, len(tokens.ids))
        return one_pass(model, tokens, places, asked, cache, vision_features=torch.cat(features))

    @property
    def unknown(self) -> int:
        """See `Way`."""
        return self.answerer.store.stats.misses

    def _features(self, image: Image.Image) -> Tensor:
        model = self.answerer.model
        return model.base_model.vision_features(self.answerer.pixels([image]))


class ImagesAlone(Answerer):
    """What a causal model makes of each image alone: its states from position 0, and what goes into them.

    Attributes:
        text: The same weights with masks under which text attends as in the causal model, and states may be put in.
        embedded: By an image's key, what the language model reads of it, (P, E).
    """

    def __init__(self, model: VisualChatForConditionalGeneration, processor: VisualChatProcessor, budget: int) -> None:
        super().__init__(model, processor, ImageStore(budget, 0))
        self.embedded = ImageStore(budget, 0)
        self.text = copy.deepcopy(model)
        self.text.config.attention_kind = "mmca_joint"
        self.text.language_model.set_attn_implementation(self.text.config.decoder_attention)
        if why := why_not_own(self.text):
            raise ValueError(f"states of images cannot be put into this model: {why}")

    def of(self, tokens: Tokens, images: list[Image.Image]) -> tuple[list[Insertion], list[Tensor]]:
        """The text that opens a conversation and its images, in their places; and the images' embeddings."""
        units = units_from(self.model, tokens.ids, tokens.modality, tokens.units, 0)
        pairs = list(zip(images, units, strict=True))
        opening = tokens.ids[: units[0].place]
        keys, opening_key = self.keys.of(pairs, opening)
        device = self.model.device
        states, embedded = [], []
        for key, (image, unit) in zip(keys, pairs, strict=True):
            states.append(self.store.get(key, device, partial(self._compute, image, unit)))
            embedded.append(self.embedded.get(key, device, partial(self._embedded, image, unit)))
        given = in_place(self.model, units, states)
        return [self._opening(opening_key, opening), *given] if opening else given, embedded

    def _embedded(self, image: Image.Image, unit: Unit) -> Tensor:
        bare = self.model.base_model
        features: Tensor = bare.get_image_features(self.pixels([image])).pooler_output
        if bare.image_numbers is not None:
            features = bare.image_numbers(features, torch.tensor([unit.number]))
        return features[0]


@dataclass
class Recomputed:
    """Images' states of their own in the place of those they would have, but for their first tokens.

    The pass over the text computes those tokens too, as it does text: each sees everything before it, of images that
    came earlier what they were put in with.

    Attributes:
        alone: The model.
        share: Of each image's tokens, its first ones, that are computed.
    """

    alone: ImagesAlone
    share: float
    exact: bool = False

    def logits(self, tokens: Tokens, images: list[Image.Image], asked: Tensor) -> Tensor:
        """See `Way`."""
        given, embedded = self.alone.of(tokens, images)
        first = math.ceil(self.share * len(embedded[0]))
        slots = torch.tensor(tokens.modality) == Modality.IMAGE
        begins = slots.nonzero()[:: len(embedded[0]), 0]
        computed = (begins[:, None] + torch.arange(first)).flatten()
        modality = slots.long()
        modality[computed] = Modality.TEXT
        as_text = replace(tokens, modality=modality.tolist())
        cache = ImagesFirstCache(self.alone.text.config.text_config)
        kept = [each if each.text else _without(each, first) for each in given]
        places = _put_in(cache, [each for each in kept if each.length], modality)
        embeds = self.alone.text.get_input_embeddings()(torch.tensor(tokens.ids)[places])
        embeds[torch.isin(places, computed)] = torch.cat([each[:first] for each in embedded])
        return one_pass(self.alone.text, as_text, places, asked, cache, inputs_embeds=embeds[None])

    @property
    def unknown(self) -> int:
        """See `Way`."""
        return self.alone.store.stats.misses


def _put_in(cache: ImagesFirstCache, given: list[Insertion], modality: Tensor) -> Tensor:
    """Insert, and tell where what is left to compute stands, (T,)."""
    if not given:
        return torch.arange(len(modality))
    cache.insert(given, modality)
    assert cache.order is not None
    return cache.order[0, cache.get_seq_length() :]


def _without(given: Insertion, first: int) -> Insertion:
    """An image's states but those of its first tokens."""

    def turned(keys: Tensor, part: slice, out: Tensor) -> None:
        assert given.turn is not None
        given.turn(keys, slice(part.start + first, part.stop + first), out)

    turn: Callable[[Tensor, slice, Tensor], None] = turned
    return Insertion(given.place + first, 0, given.states[:, :, :, first:], turn)

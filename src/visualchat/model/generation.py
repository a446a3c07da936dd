"""What transformers' `generate` must be told about images: which row they belong to, and what is in the cache.

Shapes: B batch, S sequence, K keys (S plus what is cached).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin

from visualchat.attention import Modality
from visualchat.dialogue.encoding import NO_UNIT
from visualchat.model.images_first import new_cache
from visualchat.model.sharding import is_split_model

IMAGES = ("pixel_values", "vision_features", "image_index")
"""Inputs that stand image by image, not row by row."""

HELD = "visualchat_ids"
"""The attribute of a cache that holds what its tokens are: modality and, if known, units, (B, K) each."""


def hold_ids(cache: Cache | None, key_modality: Tensor, unit_ids: Tensor | None) -> None:
    """Keep what a cache's tokens are with it, for calls that continue from there."""
    if cache is not None:
        setattr(cache, HELD, (key_modality, unit_ids))


def held_ids(cache: Cache | None, rows: int) -> tuple[Tensor | None, Tensor | None]:
    """Modality and units of a cache's tokens, (B, cached); None for an empty cache and for what is not known.

    A cache that was cropped holds its first tokens still.
    """
    cached = _cached(cache)
    held: tuple[Tensor | None, Tensor | None] = getattr(cache, HELD, (None, None)) if cached else (None, None)
    fits = held[0] is not None and len(held[0]) == rows and held[0].shape[1] >= cached
    modality, units = held if fits else (None, None)
    return None if modality is None else modality[:, :cached], None if units is None else units[:, :cached]


class VisualChatGenerationMixin(GenerationMixin):
    """The part of the model that `generate` talks to."""

    config: Any

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, on a model split over processes too: each must call it, and continues until all are done.

        That is `synced_gpus`, which transformers sets by itself for ZeRO-3 and FSDP1 only.
        """
        if is_split_model(self):  # type: ignore[arg-type]
            kwargs.setdefault("synced_gpus", True)
        return super().generate(*args, **kwargs)  # type: ignore[misc]

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """transformers' hook before beams and several sequences: the copies of a row stand together.

        Each copy gets all images of its row; they are encoded once, and `image_index` says which slot shows which.
        """
        images = {name: model_kwargs.pop(name) for name in IMAGES if model_kwargs.get(name) is not None}
        types, cache = model_kwargs.get("mm_token_type_ids"), model_kwargs.get("past_key_values")
        ids, expanded = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,  # type: ignore[arg-type]
            **model_kwargs,
        )
        if expand_size > 1 and images and types is not None:
            index = _index(images)
            whole, late = self._images_by_row(types, 0), self._images_by_row(types, _cached(cache))
            counts = next((counts for counts in (whole, late) if sum(counts) == len(index)), None)
            if counts is None:
                raise ValueError(
                    f"image slots and images do not match: mm_token_type_ids marks {sum(whole)} images, "
                    f"{len(index)} are given"
                )
            images["image_index"] = torch.cat([row.repeat(expand_size) for row in index.split(counts)])
        return ids, expanded | images

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """transformers' hook before the first step: its growing cache becomes the kind's own."""
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        cache = model_kwargs.get("past_key_values")
        if given is None and type(cache) is DynamicCache and not cache.offloading:
            model_kwargs["past_key_values"] = new_cache(self.config)

    def _prepare_attention_mask_for_generation(
        self, inputs_tensor: Tensor, generation_config: Any, model_kwargs: dict[str, Any]
    ) -> Tensor:
        """transformers' guess where no mask is given: padding is what holds the padding token; image slots do, too."""
        mask: Tensor = super()._prepare_attention_mask_for_generation(inputs_tensor, generation_config, model_kwargs)
        types = model_kwargs.get("mm_token_type_ids")
        if types is None:
            types, _ = held_ids(model_kwargs.get("past_key_values"), len(mask))
        if types is not None and types.shape[1] <= mask.shape[1]:
            mask[:, : types.shape[1]] |= (types == Modality.IMAGE).to(mask)
        return mask

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        unit_ids: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """transformers' hook before each step of `generate`; adds all tokens' modality and units so far."""
        cached = _cached(past_key_values)
        first = (
            bool(is_first_iteration) or not cached
        )  # an assistant's prompt is not called first, and would lose images
        given = inputs_embeds if inputs_embeds is not None and first else input_ids
        new = given.shape[1] if next_sequence_length is None else next_sequence_length
        held, held_units = held_ids(past_key_values, len(given))
        types = _so_far(mm_token_type_ids, held, cached, given.shape[1], cached + new, int(Modality.TEXT))
        if types is None and not cached:
            types = torch.zeros(len(given), new, dtype=torch.long, device=given.device)
        model_inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,  # type: ignore[arg-type]
            inputs_embeds=inputs_embeds,
            mm_token_type_ids=types,
            is_first_iteration=first,
            **kwargs,
        )
        if self.config.images_outside or self.config.image_positions == "shared":
            model_inputs["attention_mask"] = attention_mask  # of 2 dimensions, also where the cache is static
        model_inputs["key_modality"] = types
        units = _so_far(unit_ids, held_units, cached, given.shape[1], cached + new, NO_UNIT)
        if units is not None:
            if attention_mask is not None and attention_mask.shape == units.shape:  # whoever padded it by 0
                units = units.masked_fill(attention_mask == 0, NO_UNIT)
            model_inputs["unit_ids"] = units
        if types is not None and cached:
            self._leave_cached_images_out(model_inputs, types, cached, first)
        return model_inputs

    def _leave_cached_images_out(self, inputs: dict[str, Any], types: Tensor, cached: int, first: bool) -> None:
        """Of images that are given again with a filled cache, keep those of the new tokens, in place."""
        index = _index(inputs)
        whole, late = self._images_by_row(types, 0), self._images_by_row(types, cached)
        if first and (len(index) != sum(whole) or whole == late):
            return
        kept = [row[len(row) - count :] for row, count in zip(index.split(whole), late, strict=True)] if first else []
        if sum(map(len, kept)):
            inputs["image_index"] = torch.cat(kept)
        else:
            for name in IMAGES:
                inputs.pop(name, None)

    def _images_by_row(self, types: Tensor, start: int) -> list[int]:
        """How many images have their slots in each row (B, K), from a position on."""
        tokens = 1 if self.config.images_outside else self.config.image_seq_length
        return ((types[:, start:] == Modality.IMAGE).sum(1) // tokens).tolist()


def _cached(cache: Cache | None) -> int:
    return 0 if cache is None else int(cache.get_seq_length())


def _index(images: dict[str, Any]) -> Tensor:
    """The entry of the given images that fills each slot."""
    if images.get("image_index") is not None:
        return images["image_index"]
    values = [images[name] for name in IMAGES if images.get(name) is not None]
    return torch.arange(len(values[0]) if values else 0, device=values[0].device if values else None)


def _so_far(
    ids: Tensor | None, held: Tensor | None, cached: int, given: int, length: int, filler: int
) -> Tensor | None:
    """What cached and new tokens are, (B, length); None if it is unknown for the cached ones.

    The end may be missing: what is generated is text, of no image. So may the beginning, of tokens that are in the
    cache, where no more than the new tokens are given.
    """
    if ids is None:
        ids = held
    elif cached and ids.shape[1] == given < length:
        ids = None if held is None else torch.cat([held, ids], 1)
    return None if ids is None else nn.functional.pad(ids, (0, length - ids.shape[1]), value=filler)

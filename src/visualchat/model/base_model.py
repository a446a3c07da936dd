"""The model up to its head: vision encoder -> projector -> features between token embeddings -> language model.

Source: arXiv 2309.14327, section 4.1 and figure 1. Image slots are the positions whose `mm_token_type_ids` say image;
the k-th image's features fill the k-th slots, row by row.

Shapes: B batch, S sequence, K keys (S plus what is cached), N images of the whole batch, P tokens an image, D size of
the encoder's features, E embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from visualchat.attention import Modality, add_cross_attention
from visualchat.attention.register import CAUSAL, OWN
from visualchat.model.attn_implementation import by_part, check_attention, initial_attention, takes_segments
from visualchat.model.auto_map import write_auto_map
from visualchat.model.configuration_visualchat import VisualChatConfig
from visualchat.model.cross_images import hold, outside_sequence, unseen_image
from visualchat.model.damage import naming_damage
from visualchat.model.generation import held_ids, hold_ids
from visualchat.model.image_adapters import ImageSlots
from visualchat.model.image_numbers import ImageNumbers, attention_ids, known_units, longer_by_text, slot_numbers
from visualchat.model.images_first import ImagesFirstCache
from visualchat.model.positions import shared
from visualchat.model.projector import PROJECTORS, Projector, ProjectorShape
from visualchat.model.sharding import is_split_model

PER_KEY = ("key_modality", "unit_ids", "image_ids", "attention_mask")
"""What the language model is told of each cached and new token, (B, K)."""


@dataclass
class VisualChatModelOutput(BaseModelOutputWithPast):
    """What the model without its head gives.

    Attributes:
        last_hidden_state: (B, S, E).
        past_key_values: The cache.
        hidden_states: Of each layer of the language model, if asked for.
        attentions: Likewise.
        image_hidden_states: (N, P, E), the projected images.
    """

    image_hidden_states: Tensor | None = None


class VisualChatModel(PreTrainedModel):
    """Encoder, projector and language model, up to the hidden states that the language model's head reads."""

    config_class = VisualChatConfig
    config: VisualChatConfig
    input_modalities = ["image", "text"]  # noqa: RUF012 (transformers' own form)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012 (transformers' own form)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **keywords: Any) -> Any:
        """transformers' own.

        Raises:
            ValueError: A file is damaged; it is named.
        """
        with naming_damage(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *arguments, **keywords)

    def __init__(self, config: VisualChatConfig) -> None:
        """Build with random weights; see `from_pretrained` and `from_backbones` for real ones."""
        attention = initial_attention(config)
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config, trust_remote_code=False)
        self.language_model = AutoModelForCausalLM.from_config(
            config.text_config, attn_implementation=attention, trust_remote_code=False
        )
        self._add_cross_attention()
        self.multi_modal_projector = self._new_projector()
        self.image_numbers = self._new_numbers()
        self.image_slots: ImageSlots | None = None  # set where adapters act on image tokens alone
        self.post_init()

    def _add_cross_attention(self) -> None:
        """Where images stand outside the sequence: the layers that read them."""
        if self.config.images_outside:
            size = self.language_model.config.hidden_size
            add_cross_attention(self.language_model, every=self.config.cross_attention_every, image_size=size)

    def _new_projector(self) -> Projector:
        sizes = self.vision_tower.config.hidden_size, self.language_model.config.hidden_size
        return PROJECTORS[self.config.projector_type](ProjectorShape(*sizes, self.config.image_seq_length))

    def _new_numbers(self) -> ImageNumbers | None:
        if self.config.image_numbers == "none":
            return None
        return ImageNumbers(self.config.image_number_limit, self.language_model.config.hidden_size)

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, str], allow_all_kernels: bool = False
    ) -> None:
        """transformers' own; for the language model a name means an implementation of the configured kind.

        Raises:
            ValueError: The kind has no such implementation.
        """
        super().set_attn_implementation(by_part(self.config, attn_implementation), allow_all_kernels)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """transformers' own; the folder also says where its code is (`visualchat.model.auto_map`)."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_auto_map(save_directory)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing: what is saved names its code already, and no file of this package is to be copied beside it."""

    def get_input_embeddings(self) -> nn.Embedding:
        """The language model's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        """The language model's head, which grows and shrinks with the token embedding."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language model's head."""
        self.language_model.set_output_embeddings(new_embeddings)

    def blank_image(self) -> Tensor:
        """A grey image of the encoder's size, (1, 3, height, width)."""
        size = self.vision_tower.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return torch.zeros(1, 3, height, width, dtype=self.dtype, device=self.device)

    def _see(self, pixel_values: Tensor, **kwargs: Any) -> tuple[Any, Tensor]:
        """The encoder's output and its chosen features, (N, tokens, D), of (N, 3, height, width)."""
        layer = self.config.vision_feature_layer
        if layer is not None:
            kwargs["output_hidden_states"] = True
        out = self.vision_tower(pixel_values.to(self.dtype), **kwargs)
        features = out.last_hidden_state if layer is None else out.hidden_states[layer]
        return out, features[:, 1:] if self.config.vision_feature_select_strategy == "default" else features

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """The encoder's features of each image, (N, P, vision size), from (N, 3, height, width)."""
        return self._see(pixel_values)[1]

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor | None = None, vision_features: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Images as the language model reads them, `pooler_output` (N, P, E).

        Args:
            pixel_values: (N, 3, height, width); either these or `vision_features`.
            vision_features: (N, P, D), what the vision encoder made of the images.
            **kwargs: Handed to the encoder (`output_hidden_states`, `output_attentions`).

        Raises:
            ValueError: The encoder's tokens do not make `config.image_seq_length` ones, or there is not exactly one of
                the two.
        """
        if (pixel_values is None) == (vision_features is None):
            found = "neither" if pixel_values is None else "both"
            raise ValueError(f"expected either pixel_values or vision_features, found {found}")
        seen = None
        if pixel_values is None:
            features, source = vision_features, "vision_features bring {} tokens an image"
        else:
            seen, features = self._see(pixel_values, **kwargs)
            source = f"the vision encoder gives {{}} tokens for images of {tuple(pixel_values.shape[2:])} pixels"
        assert features is not None
        if self.multi_modal_projector.tokens(features.shape[1]) != self.config.image_seq_length:
            raise ValueError(
                f"{source.format(features.shape[1])}, config.image_seq_length is {self.config.image_seq_length}"
            )
        return BaseModelOutputWithPooling(
            last_hidden_state=features if seen is None else seen.last_hidden_state,
            pooler_output=self.multi_modal_projector(features),
            hidden_states=getattr(seen, "hidden_states", None),
            attentions=getattr(seen, "attentions", None),
        )

    def splice(self, inputs_embeds: Tensor, mm_token_type_ids: Tensor, image_features: Tensor) -> Tensor:
        """Put the k-th image's features into the k-th image slots, row by row.

        Args:
            inputs_embeds: (B, S, E).
            mm_token_type_ids: (B, S).
            image_features: (N, P, E).

        Raises:
            ValueError: The slots are not exactly N × P.
        """
        slots = mm_token_type_ids == Modality.IMAGE
        tokens, features = int(slots.sum()), image_features.shape[0] * image_features.shape[1]
        if tokens != features:
            raise ValueError(
                f"image slots and images do not match: mm_token_type_ids marks {tokens} image tokens, "
                f"{image_features.shape[0]} images bring {features} ({image_features.shape[1]} each)"
            )
        return inputs_embeds.masked_scatter(slots[..., None], image_features.to(inputs_embeds.dtype))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        key_modality: Tensor | None = None,
        unit_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        image_index: Tensor | None = None,
        vision_features: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> VisualChatModelOutput:
        """One pass up to the head.

        Args:
            input_ids: (B, S) token ids; either these or `inputs_embeds`.
            pixel_values: (N, 3, height, width), the images of the image slots in this pass, row by row; None where
                there is none.
            attention_mask: (B, K), 1 at real tokens.
            position_ids: (B, S); counted from 0 if None, and always where the configuration has images share positions.
            past_key_values: Cache of earlier tokens.
            inputs_embeds: (B, S, E) instead of `input_ids`.
            mm_token_type_ids: (B, S), a `Modality` each; all text if None.
            key_modality: (B, K), the same for cached and present tokens together; needed with a cache that this model
                did not fill.
            unit_ids: (B, K), the number of the image that a token is of or labels, -1 for other text; of cached and
                present tokens together. Kinds of attention that tell images apart need them where there is an image.
            segment_ids: (B, S), which of the dialogues packed in a row a token belongs to; nothing attends across. They
                need `position_ids` that start at 0 in each, padding included, and no cache. None where a row is one
                dialogue.
            image_index: (slots,), which entry of `pixel_values` fills each image slot of the batch, row by row; None
                where every slot has its own.
            vision_features: (N, P, D), what the vision encoder made of the images, instead of `pixel_values`.
            use_cache: Whether to return the cache.
            **kwargs: Handed to the language model.

        Raises:
            ValueError: Slots and images do not match, `key_modality` or `unit_ids` are missing, packing lacks
                `position_ids`, or the language model attends by another kind than the configured one.
        """
        check_attention(self.config, self.language_model.config._attn_implementation)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "expected exactly one of input_ids and inputs_embeds, found "
                + ("neither" if input_ids is None else "both")
            )
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if mm_token_type_ids is None:
            mm_token_type_ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        held, held_units = held_ids(past_key_values, len(inputs_embeds))
        if key_modality is None:
            key_modality = _key_modality(mm_token_type_ids, held, past_key_values)
        if unit_ids is None and held_units is not None and not (mm_token_type_ids == Modality.IMAGE).any():
            unit_ids = longer_by_text(held_units, key_modality.shape[1])

        image_features = None
        if pixel_values is not None or vision_features is not None:
            image_features = self.get_image_features(pixel_values, vision_features, return_dict=True).pooler_output
        filling = image_features if image_index is None or image_features is None else image_features[image_index]
        units = known_units(self.config, unit_ids, key_modality)
        filling = self._numbered(filling, units, mm_token_type_ids)
        masks = {"attention_mask": attention_mask, "position_ids": position_ids}
        if segment_ids is not None:
            masks |= self._packed(segment_ids, position_ids, past_key_values)
        if self.config.images_outside:
            masks |= self._outside(filling, mm_token_type_ids, key_modality, attention_mask, past_key_values)
        else:
            inputs_embeds = self._inside(inputs_embeds, filling, mm_token_type_ids, past_key_values)
        if self.config.image_positions == "shared":
            masks |= shared(masks, key_modality, inputs_embeds.shape[1], past_key_values)
        kwargs |= masks | attention_ids(self.config, units, key_modality)
        kwargs["key_modality"] = key_modality
        if isinstance(past_key_values, ImagesFirstCache):
            kwargs |= {name: past_key_values.in_order(kwargs[name]) for name in PER_KEY if kwargs.get(name) is not None}
            if past_key_values.awaits_text:
                kwargs["key_order"] = past_key_values.order
        if self.image_slots is not None:
            self.image_slots.now = mm_token_type_ids == Modality.IMAGE
        out = self.language_model.base_model(
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        if isinstance(past_key_values, ImagesFirstCache) and (mm_token_type_ids == Modality.IMAGE).any():
            past_key_values.arrange(key_modality)
        hold(out.past_key_values, kwargs)
        hold_ids(out.past_key_values, key_modality, unit_ids)
        asked = kwargs.get("output_attentions", self.language_model.config.output_attentions)
        if asked and self.language_model.config._attn_implementation in OWN - {CAUSAL}:
            raise ValueError(
                f"attention kind {self.config.attention_kind!r} gives no attention weights (output_attentions); kind "
                "'causal' does with attn_implementation='eager'"
            )
        return VisualChatModelOutput(
            out.last_hidden_state, out.past_key_values, out.hidden_states, out.attentions, image_features
        )

    def _numbered(self, filling: Tensor | None, units: Tensor | None, mm_token_type_ids: Tensor) -> Tensor | None:
        """The images (N, P, E) with the vectors of their numbers; as they are where the model has none."""
        if self.image_numbers is None or filling is None or units is None:
            return filling
        numbers = slot_numbers(units, mm_token_type_ids, len(filling))
        return filling if numbers is None else self.image_numbers(filling, numbers)  # a misfit is refused below

    def _inside(
        self, inputs_embeds: Tensor, filling: Tensor | None, mm_token_type_ids: Tensor, cache: Cache | None
    ) -> Tensor:
        """Token embeddings with the images (N, P, E) in their slots, (B, S, E)."""
        if filling is not None:
            return self.splice(inputs_embeds, mm_token_type_ids, filling)
        if (mm_token_type_ids == Modality.IMAGE).any():
            tokens = int((mm_token_type_ids == Modality.IMAGE).sum())
            raise ValueError(f"image slots and images do not match: {tokens} image tokens but no pixel_values")
        return inputs_embeds + 0.0 * self._blank_features().sum() if self._must_look(cache) else inputs_embeds

    def _outside(
        self,
        filling: Tensor | None,
        mm_token_type_ids: Tensor,
        key_modality: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
    ) -> dict[str, Any]:
        """What the language model takes where gated layers read the images, as in `outside_sequence`."""
        inputs = outside_sequence(filling, mm_token_type_ids, key_modality, attention_mask, cache)
        if "image_states" not in inputs and self._must_look(cache):
            inputs |= unseen_image(self._blank_features(), len(mm_token_type_ids))
        return inputs

    def _must_look(self, cache: Cache | None) -> bool:
        """Whether a batch without images reads a blank one, because the ranks must go through the encoder together.

        The collectives of DDP and ZeRO-3 would wait for ever: in training, and with a split model in evaluation too,
        but not in the steps of `generate` that follow the prompt's.
        """
        return self.training or ((cache is None or not cache.get_seq_length()) and is_split_model(self))

    def _blank_features(self) -> Tensor:
        """A blank image, projected and numbered, whatever the number of tokens."""
        blank = self.multi_modal_projector(self.vision_features(self.blank_image()))
        return blank if self.image_numbers is None else self.image_numbers(blank, blank.new_ones(1, dtype=torch.long))

    def _packed(self, segment_ids: Tensor, position_ids: Tensor | None, cache: Cache | None) -> dict[str, Any]:
        """What tells the language model of the dialogues in a row."""
        if self.config.images_outside:
            raise ValueError("attention kind 'cross' takes one dialogue a row, found packed rows (segment_ids)")
        if position_ids is None or cache is not None:
            raise ValueError("packed rows (segment_ids) need position_ids that start at 0 in each dialogue, no cache")
        if takes_segments(self.language_model):  # padding is one more dialogue to plain causal attention
            return {"segment_ids": segment_ids} | (
                {"attention_mask": torch.ones_like(segment_ids)} if self.config.plain_causal else {}
            )
        if self.config.image_positions == "shared":
            raise ValueError("packed rows with image_positions 'shared' need attention_implementation 'auto' or 'sdpa'")
        return {"attention_mask": None}  # transformers' own then tells packed dialogues by their positions


def _key_modality(mm_token_type_ids: Tensor, held: Tensor | None, cache: Cache | None) -> Tensor:
    """The modality of cached and present tokens, (B, K), where the caller tells that of the present ones only."""
    if cache is None or not cache.get_seq_length():
        return mm_token_type_ids
    if held is None:
        raise ValueError(
            "with tokens in a cache that this model did not fill, key_modality (B, K) must tell the modality of cached "
            "and new tokens: pass generate the mm_token_type_ids of the whole conversation"
        )
    return torch.cat([held, mm_token_type_ids], 1)

"""The model: frozen vision encoder -> projector -> features spliced between token embeddings -> frozen language model.

Source: arXiv 2309.14327, section 4.1 and figure 1. Image slots are the positions whose `mm_token_type_ids` say image;
the k-th image's features fill the k-th slots, row by row.

Shapes: B batch, S sequence, K keys (S plus what is cached), N images of the whole batch, P tokens an image, E embedding
size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from visualchat.attention import Modality, add_cross_attention
from visualchat.model.configuration_visualchat import VisualChatConfig
from visualchat.model.language import load_language_model
from visualchat.model.loss import answer_loss, answer_losses, answer_rows, language_head, training_loss
from visualchat.model.numbers import (
    ImageNumbers,
    attention_ids,
    known_units,
    longer_by_text,
    slot_numbers,
    start_at_labels,
)
from visualchat.model.outside import hold, outside_sequence, unseen_image
from visualchat.model.projector import PROJECTORS, Projector, ProjectorShape
from visualchat.model.sharding import gathered, is_split_model, shapes_only
from visualchat.model.vision import load_vision_tower


@dataclass
class VisualChatOutput(ModelOutput):
    """What `forward` gives.

    Attributes:
        loss: Mean over the answer tokens; only with labels.
        logits: (B, S, V), or fewer positions by `logits_to_keep`; with labels only the rows that predict a labelled
            token, (answer tokens, V), in reading order; None with labels in training mode, where they are never made
            all at once.
        past_key_values: The cache.
        image_hidden_states: (N, P, E), the projected images.
        answer_losses: (answer tokens,), what `loss` is the mean of, in reading order, row by row; only with labels.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    image_hidden_states: Tensor | None = None
    answer_losses: Tensor | None = None


class VisualChatForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Chat about many images over many rounds."""

    config_class = VisualChatConfig
    config: VisualChatConfig
    input_modalities = ["image", "text"]  # noqa: RUF012 (transformers' own form)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: VisualChatConfig) -> None:
        """Build with random weights; see `from_pretrained` and `from_backbones` for real ones."""
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.language_model = AutoModelForCausalLM.from_config(
            config.text_config, attn_implementation=config.decoder_attention
        )
        self._add_cross_attention()
        self.multi_modal_projector = self._new_projector()
        self.image_numbers = self._new_numbers()
        self.post_init()

    @classmethod
    def from_backbones(
        cls,
        vision: str | Path,
        language: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        vocab_size: int = 0,
        language_bits: int | None = None,
        **config: Any,
    ) -> VisualChatForConditionalGeneration:
        """Join two pretrained backbones by a fresh projector.

        The language model's head is untied from its embedding, because only the embedding trains. A norm at the
        projector's end starts at the spread of the token embeddings, so that images enter the language model at the
        scale of words.

        Args:
            vision: A vision encoder, as in `visualchat.model.vision.load_vision_tower`.
            language: Folder or Hub name of a causal language model.
            dtype: Of all weights.
            vocab_size: The least number of token embeddings: `len(processor.tokenizer)` where the template adds tokens.
            language_bits: 8 or 4 to hold the language model's linear layers but its head in so many bits, frozen; needs
                bitsandbytes. None for `dtype`.
            **config: Further fields of `VisualChatConfig`.

        Raises:
            ValueError: `language_bits` is neither 8 nor 4.
        """
        vision_tower = load_vision_tower(vision, dtype)
        language_model = load_language_model(language, dtype, bits=language_bits, vocab_size=vocab_size)
        for backbone in (vision_tower, language_model):
            backbone.config.name_or_path = ""  # a saved model carries no paths of the machine that made it
        joint = VisualChatConfig(vision_config=vision_tower.config, text_config=language_model.config, **config)

        with shapes_only():  # the backbones come with their weights: make none for them
            model = cls(joint)
        model.vision_tower = vision_tower
        model.language_model = language_model
        language_model.set_attn_implementation(joint.decoder_attention)
        model._add_cross_attention()
        model.multi_modal_projector = model._new_projector().to(dtype)
        if (norm := model.multi_modal_projector.last_norm) is not None:
            with gathered(model.get_input_embeddings().weight) as embedding:
                nn.init.constant_(norm.weight, embedding.float().std().item())
        if (numbers := model._new_numbers()) is not None:
            model.image_numbers = numbers.to(dtype)
            if joint.image_numbers == "label":
                with gathered(model.get_input_embeddings().weight) as embedding:
                    start_at_labels(model.image_numbers, embedding, AutoTokenizer.from_pretrained(language))
        model.generation_config = language_model.generation_config
        return model.eval()

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

    def get_input_embeddings(self) -> nn.Embedding:
        """The language model's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def blank_image(self) -> Tensor:
        """A grey picture of the encoder's size, (1, 3, height, width)."""
        size = self.vision_tower.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return torch.zeros(1, 3, height, width, dtype=self.dtype, device=self.device)

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """The encoder's features of each image, (N, P, vision size), from (N, 3, height, width)."""
        layer = self.config.vision_feature_layer
        out = self.vision_tower(pixel_values.to(self.dtype), output_hidden_states=layer is not None)
        features = out.last_hidden_state if layer is None else out.hidden_states[layer]
        return features[:, 1:] if self.config.vision_feature_select_strategy == "default" else features

    def get_image_features(self, pixel_values: Tensor | None = None, vision_features: Tensor | None = None) -> Tensor:
        """Projected images, (N, P, E), from (N, 3, height, width) or from what the encoder made of them, (N, P, D).

        Raises:
            ValueError: The encoder's tokens do not make `config.image_seq_length` ones, or there is not exactly one of
                the two.
        """
        if (pixel_values is None) == (vision_features is None):
            found = "neither" if pixel_values is None else "both"
            raise ValueError(f"expected either pixel_values or vision_features, found {found}")
        if pixel_values is None:
            features, source = vision_features, "vision_features bring {} tokens an image"
        else:
            features = self.vision_features(pixel_values)
            source = f"the vision encoder gives {{}} tokens for images of {tuple(pixel_values.shape[2:])} pixels"
        assert features is not None
        if self.multi_modal_projector.tokens(features.shape[1]) != self.config.image_seq_length:
            raise ValueError(
                f"{source.format(features.shape[1])}, config.image_seq_length is {self.config.image_seq_length}"
            )
        return self.multi_modal_projector(features)

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
        found, given = int(slots.sum()), image_features.shape[0] * image_features.shape[1]
        if found != given:
            raise ValueError(
                f"image slots and images do not match: mm_token_type_ids marks {found} image tokens, "
                f"{image_features.shape[0]} images bring {given} ({image_features.shape[1]} each)"
            )
        return inputs_embeds.masked_scatter(slots[..., None], image_features.to(inputs_embeds.dtype))

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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> VisualChatOutput:
        """One pass.

        Args:
            input_ids: (B, S) token ids; either these or `inputs_embeds`.
            pixel_values: (N, 3, height, width), the images of the image slots in this pass, row by row; None where
                there is none.
            attention_mask: (B, K), 1 at real tokens.
            position_ids: (B, S); counted from 0 if None.
            past_key_values: Cache of earlier tokens.
            inputs_embeds: (B, S, E) instead of `input_ids`.
            mm_token_type_ids: (B, S), a `Modality` each; all text if None.
            key_modality: (B, K), the same for cached and present tokens together; needed with a cache that is not
                empty.
            unit_ids: (B, K), the number of the image that a token is of or labels, -1 for other text; of cached and
                present tokens together. Kinds of attention that tell images apart need them where there is an image.
            segment_ids: (B, S), which of the dialogues packed in a row a token belongs to; nothing attends across. They
                need `position_ids` that start at 0 in each, padding included, and no cache. None where a row is one
                dialogue.
            image_index: (slots,), which entry of `pixel_values` fills each image slot of the batch, row by row; None
                where every slot has its own.
            vision_features: (N, P, D), what the vision encoder made of the images, instead of `pixel_values`.
            labels: (B, S) token ids, -100 where nothing is trained.
            use_cache: Whether to return the cache; not with labels unless asked.
            logits_to_keep: Positions from the end (or their indices) to compute logits for, without labels; 0 for all.
            **kwargs: Handed to the language model.

        Raises:
            ValueError: Slots and images do not match, `key_modality` or `unit_ids` are missing, or packing lacks
                `position_ids`.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if mm_token_type_ids is None:
            mm_token_type_ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        if key_modality is None:
            if past_key_values is not None and past_key_values.get_seq_length():
                raise ValueError(
                    "with tokens in the cache, key_modality (B, K) must tell the modality of cached and new tokens: "
                    "pass generate the mm_token_type_ids of the whole conversation"
                )
            key_modality = mm_token_type_ids

        image_features = None
        if pixel_values is not None or vision_features is not None:
            image_features = self.get_image_features(pixel_values, vision_features)
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
        kwargs |= masks | attention_ids(self.config, units, key_modality)
        out = self.language_model.base_model(
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=labels is None if use_cache is None else use_cache,
            key_modality=key_modality,
            **kwargs,
        )
        hold(out.past_key_values, kwargs)
        loss = losses = None
        if labels is not None:
            rows, targets = answer_rows(out.last_hidden_state, labels)
            if self.training:
                logits, (loss, losses) = None, training_loss(self.language_model, rows, targets)
            else:
                logits = language_head(self.language_model, rows)
                losses = answer_losses(logits, targets)
                loss = answer_loss(losses)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = language_head(self.language_model, out.last_hidden_state[:, kept])
        return VisualChatOutput(loss, logits, out.past_key_values, image_features, losses)

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
            found = int((mm_token_type_ids == Modality.IMAGE).sum())
            raise ValueError(f"image slots and images do not match: {found} image tokens but no pixel_values")
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
        found = outside_sequence(filling, mm_token_type_ids, key_modality, attention_mask, cache)
        if "image_states" not in found and self._must_look(cache):
            found |= unseen_image(self._blank_features(), len(mm_token_type_ids))
        return found

    def _must_look(self, cache: Cache | None) -> bool:
        """Whether a batch without images reads a blank one, because the ranks must go through the encoder together.

        The collectives of DDP and ZeRO-3 would wait for ever: in training, and with a split model in evaluation too,
        but not in the steps of `generate` that follow the prompt's.
        """
        return self.training or ((cache is None or not cache.get_seq_length()) and is_split_model(self))

    def _blank_features(self) -> Tensor:
        """A blank image, projected and numbered, of however many tokens."""
        blank = self.multi_modal_projector(self.vision_features(self.blank_image()))
        return blank if self.image_numbers is None else self.image_numbers(blank, blank.new_ones(1, dtype=torch.long))

    def _packed(self, segment_ids: Tensor, position_ids: Tensor | None, cache: Cache | None) -> dict[str, Any]:
        """What tells the language model of the dialogues in a row."""
        if self.config.images_outside:
            raise ValueError("attention kind 'cross' takes one dialogue a row, found packed rows (segment_ids)")
        if position_ids is None or cache is not None:
            raise ValueError("packed rows (segment_ids) need position_ids that start at 0 in each dialogue, no cache")
        if self.config.attention_kind == "causal":
            # transformers' own attention tells packed dialogues by their positions, if there is no padding mask;
            # padding is then one more dialogue
            return {"attention_mask": None}
        return {"segment_ids": segment_ids}

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, on a model split over processes too: each must call it, and goes on until all are done.

        That is `synced_gpus`, which transformers sets by itself for ZeRO-3 and FSDP1 only.
        """
        if is_split_model(self):
            kwargs.setdefault("synced_gpus", True)
        return super().generate(*args, **kwargs)  # type: ignore[misc]

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        unit_ids: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """transformers' hook before each step of `generate`; adds all tokens' modality and units so far."""
        cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        if mm_token_type_ids is None and not (is_first_iteration and cached):
            mm_token_type_ids = torch.zeros_like(input_ids)
        model_inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            past_key_values=past_key_values,
            attention_mask=attention_mask,  # type: ignore[arg-type]
            inputs_embeds=inputs_embeds,
            mm_token_type_ids=mm_token_type_ids,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        model_inputs["key_modality"] = mm_token_type_ids
        if unit_ids is not None:
            model_inputs["unit_ids"] = longer_by_text(unit_ids, input_ids.shape[1])
        return model_inputs

"""The model: `VisualChatModel` and its language model's head; answers' losses, and generation.

Source: arXiv 2309.14327, section 4.1 and figure 1.

Shapes: B batch, S sequence, N images of the whole batch, P tokens an image, E embedding size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Cache
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from visualchat.dialogue.encoding import IGNORE_INDEX
from visualchat.model.base_model import VisualChatModel
from visualchat.model.configuration_visualchat import VisualChatConfig
from visualchat.model.generation import VisualChatGenerationMixin
from visualchat.model.image_numbers import start_at_labels
from visualchat.model.language import load_language_model
from visualchat.model.loss import answer_loss, answer_losses, answer_rows, language_head, training_loss
from visualchat.model.remote_code import load_without_code
from visualchat.model.sharding import gathered, shapes_only
from visualchat.model.vision import load_vision_tower


@dataclass
class VisualChatOutput(ModelOutput):
    """What the whole model gives.

    Attributes:
        loss: Mean over the answer tokens; only with labels.
        logits: (B, S, V), or fewer positions by `logits_to_keep`; with labels only the rows that predict a labelled
            token, (answer tokens, V), in row-major order; None with labels in training mode, where they are never made
            in one piece.
        past_key_values: The cache.
        hidden_states: Of each layer of the language model, if asked for.
        attentions: Likewise.
        image_hidden_states: (N, P, E), the projected images.
        answer_losses: (answer tokens,), what `loss` is the mean of, in row-major order; only with labels.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None
    answer_losses: Tensor | None = None


class VisualChatForConditionalGeneration(VisualChatModel, VisualChatGenerationMixin):
    """Chat about many images over many rounds.

    The parts carry the same names in both classes, so a folder saved by one is loaded by the other.
    """

    @property
    def base_model(self) -> VisualChatModel:
        """The same modules as a model without head, as trainers that make the loss themselves want it."""
        bare = VisualChatModel.__new__(VisualChatModel)
        nn.Module.__init__(bare)  # hooks of its own
        vars(bare).update({name: value for name, value in vars(self).items() if name not in {*vars(bare), "forward"}})
        bare._modules, bare.training = self._modules, self.training
        return bare

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
                    tokenizer = load_without_code(AutoTokenizer.from_pretrained, language)
                    start_at_labels(model.image_numbers, embedding, tokenizer)
        model.generation_config = language_model.generation_config
        return model.eval()

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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> VisualChatOutput:
        """One pass.

        Args:
            input_ids: As all inputs that are not named here, of `VisualChatModel.forward`.
            pixel_values: As there.
            attention_mask: As there.
            position_ids: As there.
            past_key_values: As there.
            inputs_embeds: As there.
            mm_token_type_ids: As there.
            key_modality: As there.
            unit_ids: As there.
            segment_ids: As there.
            image_index: As there.
            vision_features: As there.
            labels: (B, S) token ids, -100 where nothing is trained.
            use_cache: Whether to return the cache; not with labels unless asked.
            logits_to_keep: Positions from the end (or their indices) to compute logits for, without labels; 0 for all.
            num_items_in_batch: What the loss divides the sum over the answer tokens by; None for their number. A
                trainer that accumulates gives the number of all batches of a step.
            shift_labels: (B, S) labels that stand where they are predicted, instead of `labels`.
            **kwargs: Handed to the language model.

        Raises:
            ValueError: As `VisualChatModel.forward`.
        """
        out = VisualChatModel.forward(
            self,
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_token_type_ids=mm_token_type_ids,
            key_modality=key_modality,
            unit_ids=unit_ids,
            segment_ids=segment_ids,
            image_index=image_index,
            vision_features=vision_features,
            use_cache=(labels is None and shift_labels is None) if use_cache is None else use_cache,
            return_dict=True,
            **kwargs,
        )
        loss = losses = None
        if labels is not None or shift_labels is not None:
            if shift_labels is None:
                assert labels is not None
                rows, targets = answer_rows(out.last_hidden_state, labels)
            else:
                chosen = shift_labels != IGNORE_INDEX
                rows, targets = out.last_hidden_state[chosen], shift_labels[chosen]
            if self.training:
                logits, (loss, losses) = None, training_loss(self.language_model, rows, targets)
            else:
                logits = language_head(self.language_model, rows)
                losses = answer_losses(logits, targets)
                loss = answer_loss(losses)
            if num_items_in_batch is not None:
                loss = loss * (len(targets) / num_items_in_batch)
        else:
            positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = language_head(self.language_model, out.last_hidden_state[:, positions])
        return VisualChatOutput(
            loss, logits, out.past_key_values, out.hidden_states, out.attentions, out.image_hidden_states, losses
        )

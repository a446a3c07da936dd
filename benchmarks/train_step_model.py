"""The models that `train_step.py` trains, with random weights, and the dialogues it trains them on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from visualchat.attention import Modality
from visualchat.dialogue.encoding import IGNORE_INDEX, NO_UNIT
from visualchat.model import VisualChatConfig, VisualChatForConditionalGeneration
from visualchat.model.language import keep_as_stored
from visualchat.model.trainable import set_trainable

LABEL = 6
"""Text tokens before an image that label it, at most."""


@dataclass(frozen=True)
class Size:
    """The model: a LLaMA, a CLIP encoder that gives `image_tokens` patches, a linear projector.

    With `bits` the LLaMA's layers are in 4 bits, and their activations are computed again in the backward pass.
    """

    hidden: int
    mlp: int
    layers: int
    heads: int
    vocabulary: int
    image_tokens: int
    vision_hidden: int
    vision_layers: int
    key_heads: int | None = None
    bits: int | None = None

    @property
    def pixels(self) -> int:
        """Of a side of a picture."""
        return 14 * round(self.image_tokens**0.5)


SIZES = {
    "tiny": Size(32, 64, 1, 4, 300, 16, 16, 1),
    "small": Size(256, 688, 4, 8, 32000, 256, 128, 4),
    "7b": Size(4096, 11008, 32, 32, 32000, 256, 1024, 24),
    "tiny_4bit": Size(64, 128, 2, 4, 300, 16, 16, 1, key_heads=2, bits=4),
    "70b_4bit": Size(8192, 28672, 80, 64, 32000, 256, 1024, 24, key_heads=8, bits=4),
}


def make_model(size: Size, device: str, dtype: torch.dtype) -> VisualChatForConditionalGeneration:
    """Random weights; what trains requires gradients."""
    vision = CLIPVisionConfig(
        hidden_size=size.vision_hidden,
        intermediate_size=4 * size.vision_hidden,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=max(1, size.vision_hidden // 64),
        image_size=size.pixels,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=0 if size.bits else size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        vocab_size=size.vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    config = VisualChatConfig(
        vision_config=vision,
        text_config=text,
        image_seq_length=size.image_tokens,
        vision_feature_select_strategy="default",  # without the class token
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = VisualChatForConditionalGeneration(config).train()
        if size.bits:
            add_layers_of_4_bits(model.language_model, size.layers, dtype)
    torch.set_default_dtype(torch.float32)
    set_trainable(model)
    if size.bits:
        model.language_model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def add_layers_of_4_bits(language_model: PreTrainedModel, layers: int, dtype: torch.dtype) -> None:
    """Give a LLaMA without layers so many, each made and quantised (NF4) before the next, on torch's default device."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    decoder = language_model.model
    decoder.config.num_hidden_layers = layers
    for number in range(layers):
        layer = LlamaDecoderLayer(decoder.config, number).train()
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if isinstance(linear, nn.Linear):
                    shape = linear.in_features, linear.out_features
                    small = Linear4bit(*shape, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
                    weight = linear.weight.detach()
                    small.weight = Params4bit(weight, requires_grad=False, quant_type="nf4").to(weight.device)
                    setattr(block, name, small)
        decoder.layers.append(layer)
    keep_as_stored(language_model)


def make_rows(dialogues: list[list[tuple[int, int, int]]], size: Size) -> list[dict[str, Tensor]]:
    """Each dialogue as columns (1, S): of its rounds (text, answer) tokens around an image, and how many rounds follow.

    Args:
        dialogues: For each its rounds, each as tokens of text before the image, of text after it, and of the answer.
        size: Of the model.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    for rounds in dialogues:
        kinds, answers, units = [], [], []
        for number, (before, after, answer) in enumerate(rounds, 1):
            label = min(LABEL, before)
            units += (
                [NO_UNIT] * (before - label) + [number] * (label + size.image_tokens) + [NO_UNIT] * (after + answer)
            )
            text = [Modality.TEXT] * (after + answer)
            kinds += [Modality.TEXT] * before + [Modality.IMAGE] * size.image_tokens + text
            answers += [False] * (before + size.image_tokens + after) + [True] * answer
        ids = torch.randint(3, size.vocabulary, (1, len(kinds)), generator=generator)
        found.append(
            {
                "input_ids": ids,
                "mm_token_type_ids": torch.tensor([kinds]),
                "unit_ids": torch.tensor([units]),
                "labels": ids.masked_fill(~torch.tensor([answers]), IGNORE_INDEX),
                "attention_mask": torch.ones_like(ids),
                "position_ids": torch.arange(len(kinds))[None],
            }
        )
    return found

"""The models that `train_step.py` trains, with random weights, and the dialogues it trains them on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

from visualchat.attention import Modality
from visualchat.dialogue.encoding import IGNORE_INDEX, NO_UNIT
from visualchat.model import VisualChatConfig, VisualChatForConditionalGeneration
from visualchat.model.trainable import set_trainable

LABEL = 6
"""Text tokens before an image that label it, at most."""


@dataclass(frozen=True)
class Size:
    """The model: a LLaMA, a CLIP encoder that gives `image_tokens` patches, a linear projector."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    vocabulary: int
    image_tokens: int
    vision_hidden: int
    vision_layers: int

    @property
    def pixels(self) -> int:
        """Of a side of a picture."""
        return 14 * round(self.image_tokens**0.5)


SIZES = {
    "tiny": Size(32, 64, 1, 4, 300, 16, 16, 1),
    "small": Size(256, 688, 4, 8, 32000, 256, 128, 4),
    "7b": Size(4096, 11008, 32, 32, 32000, 256, 1024, 24),
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
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
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
    torch.set_default_dtype(torch.float32)
    set_trainable(model)
    return model


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

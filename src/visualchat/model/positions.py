"""Shared positions: all image tokens at one place, so that every image is at one distance from a text token.

Text is counted as if it were alone, from 0 in each dialogue; image tokens stand at 0, where rotary embedding changes
nothing. Source: arXiv 2502.01906 (D-Attn), which takes the distance out of what text sees of an image.

Shapes: B batch, S present tokens, K keys (S plus what is cached).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache

from visualchat.attention import Modality
from visualchat.model.images_first import ImagesFirstCache


def shared_positions(key_modality: Tensor, mask: Tensor | None, segment_ids: Tensor | None) -> Tensor:
    """Where each token stands, (B, K); what is said of padding means nothing.

    Args:
        key_modality: (B, K), a `Modality` each, in the order of the conversation.
        mask: (B, K) or longer, 1 at real tokens; None where all are.
        segment_ids: (B, K), which packed dialogue a token belongs to; None where a row is one.
    """
    text = key_modality == Modality.TEXT
    if mask is not None:
        text = text & mask[:, : text.shape[1]].bool()
    count = text.long().cumsum(-1)
    if segment_ids is not None:
        begins = segment_ids.diff(dim=-1, prepend=segment_ids[:, :1] - 1) != 0
        before = (count - text.long()) * begins
        count = count - before.cummax(-1).values
    return (count - 1).clamp(min=0) * text


def shared(inputs: dict[str, Any], key_modality: Tensor, tokens: int, cache: Cache | None) -> dict[str, Tensor]:
    """What tells the language model of shared positions: `position_ids` (B, S), whatever was given; and a mask.

    Args:
        inputs: `attention_mask` and, of packed rows, `segment_ids`, as the language model gets them.
        key_modality: (B, K).
        tokens: S.
        cache: Of earlier calls.
    """
    mask = inputs["attention_mask"]
    positions = shared_positions(key_modality, mask, inputs.get("segment_ids"))
    if isinstance(cache, ImagesFirstCache):
        positions = cache.in_order(positions)
    # without a mask transformers would take positions that repeat for packed dialogues
    mask = key_modality.new_ones(key_modality.shape) if mask is None else mask
    return {"position_ids": positions[:, positions.shape[1] - tokens :], "attention_mask": mask}

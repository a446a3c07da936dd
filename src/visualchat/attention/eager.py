"""The readable oracle: dense masks, plain softmaxes, exact in float64. It defines what is right.

Rows are queries, columns keys, of "text image image text" under `mmca` (T: text softmax, I: image softmax):

             text  image image text
    text     T     .     .     .
    image    .     I     .     .        an image token sees only itself
    image    .     .     I     .
    text     T     I     I     T        two softmaxes, added

Shapes: B batch, Hq query heads, Hkv key heads, Q queries, K keys, D head size. Masks: True = attend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visualchat.attention.kinds import AttentionKind, Modality


def visible(kind: AttentionKind, query_modality: Tensor, key_modality: Tensor, key_padding_mask: Tensor) -> Tensor:
    """Which keys each query sees, (B, Q, K) bool; the queries are the last Q of the K positions."""
    q_length, k_length = query_modality.shape[1], key_modality.shape[1]
    query_position = torch.arange(k_length - q_length, k_length, device=key_modality.device)[:, None]
    key_position = torch.arange(k_length, device=key_modality.device)[None, :]
    seen = (key_position <= query_position)[None].expand(len(key_modality), -1, -1)
    if kind.image_context == "self":
        image_query = (query_modality == Modality.IMAGE)[:, :, None]
        seen = torch.where(image_query, key_position == query_position, seen)
    return seen & key_padding_mask[:, None, :]


def masked_attention(scores: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    """`softmax(scores)·value` over the keys that `mask` allows; exactly 0, with a gradient of 0, where it allows none.

    Args:
        scores: (B, H, Q, K).
        mask: (B, 1, Q, K) bool.
        value: (B, H, K, D).
    """
    any_key = mask.any(-1, keepdim=True)
    weights = scores.masked_fill(~mask & any_key, float("-inf")).softmax(-1)
    return (weights * any_key).to(value.dtype) @ value


def eager_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kind: AttentionKind,
    query_modality: Tensor,
    key_modality: Tensor,
    key_padding_mask: Tensor,
    scale: float,
) -> Tensor:
    """See `visualchat.attention.multimodal_attention`; memory grows with Q × K."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(-1, -2)) * scale
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    seen = visible(kind, query_modality, key_modality, key_padding_mask)[:, None]
    if kind.softmax == "joint":
        return masked_attention(scores, seen, value)
    image_key = (key_modality == Modality.IMAGE)[:, None, None, :]
    return masked_attention(scores, seen & ~image_key, value) + masked_attention(scores, seen & image_key, value)

"""The readable oracle: dense masks, plain softmaxes, exact in float64. It defines what is right.

Shapes: B batch, Hq query heads, Hkv key heads, Q queries, K keys, D head size. Masks: True = attend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visualchat.attention.kinds import AttentionKind, Modality
from visualchat.attention.layout import Layout, visible


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
    query: Tensor, key: Tensor, value: Tensor, *, kind: AttentionKind, layout: Layout, scale: float
) -> Tensor:
    """See `visualchat.attention.multimodal_attention`; memory grows with Q × K."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(-1, -2)) * scale
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    seen = visible(kind, layout)[:, None]
    if kind.softmax == "joint":
        return masked_attention(scores, seen, value)
    image_key = (layout.modality == Modality.IMAGE)[:, None, None, :]
    return masked_attention(scores, seen & ~image_key, value) + masked_attention(scores, seen & image_key, value)

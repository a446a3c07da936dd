"""The readable oracle: dense masks, plain softmaxes, exact in float64. It defines what is right.

Shapes: B batch, Hq query heads, Hkv key heads, Q queries, K keys, D head size. Masks: True = attend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visualchat.attention.kinds import AttentionKind, Modality
from visualchat.attention.layout import Layout, visible


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """`softmax(scores)` over the keys that `mask` allows; exactly 0, with a gradient of 0, where it allows none.

    Args:
        scores: (B, H, Q, K).
        mask: (B, 1, Q, K) bool.
    """
    any_key = mask.any(-1, keepdim=True)
    weights = scores.masked_fill(~mask & any_key, float("-inf")).softmax(-1)
    return weights * any_key


def eager_weights(
    query: Tensor, key: Tensor, *, kind: AttentionKind, layout: Layout, scale: float
) -> tuple[Tensor, ...]:
    """The weights of each softmax, (B, Hq, Q, K): of the only one, or of that over text and that over images."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = (query @ key.transpose(-1, -2)) * scale
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    seen = visible(kind, layout)[:, None]
    if kind.softmax == "joint":
        return (masked_softmax(scores, seen),)
    image_key = (layout.modality == Modality.IMAGE)[:, None, None, :]
    return masked_softmax(scores, seen & ~image_key), masked_softmax(scores, seen & image_key)


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, *, kind: AttentionKind, layout: Layout, scale: float
) -> Tensor:
    """See `visualchat.attention.multimodal_attention`; memory grows with Q × K."""
    value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    first, *others = eager_weights(query, key, kind=kind, layout=layout, scale=scale)
    out = first.to(value.dtype) @ value
    for weights in others:
        out = out + weights.to(value.dtype) @ value
    return out

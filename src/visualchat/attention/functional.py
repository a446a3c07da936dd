"""`multimodal_attention`: the one functional entry to the attention family, with its checks.

Shapes: B batch, Hq query heads, Hkv key heads (Hq a multiple of Hkv), Q queries, K keys, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visualchat.attention.eager import eager_attention
from visualchat.attention.kinds import attention_kind
from visualchat.attention.sdpa import sdpa_attention

IMPLEMENTATIONS = {"eager": eager_attention, "sdpa": sdpa_attention}


def multimodal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kind: str,
    query_modality: Tensor,
    key_modality: Tensor,
    key_padding_mask: Tensor | None = None,
    implementation: str = "sdpa",
    scale: float | None = None,
) -> Tensor:
    """Attention of one kind of the family over a sequence of text and image tokens.

    The queries are the last Q of the K positions: all of them in training and prefill, one in a decode step.

    Args:
        query: (B, Hq, Q, D).
        key: (B, Hkv, K, D), rotary embedding applied.
        value: (B, Hkv, K, D).
        kind: A name in `visualchat.attention.KINDS`.
        query_modality: (B, Q) int, a `Modality` each.
        key_modality: (B, K) int; its last Q entries are `query_modality`.
        key_padding_mask: (B, K) bool, True at real tokens; None where there is no padding. The output at padding is
            finite and means nothing.
        implementation: `eager` or `sdpa`.
        scale: Factor on the scores; D ** -0.5 if None.

    Returns:
        (B, Hq, Q, D).

    Raises:
        ValueError: A name is unknown, shapes do not fit each other, or the implementation does not serve the kind.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {implementation!r}, expected one of {', '.join(IMPLEMENTATIONS)}")
    batch, q_heads, q_length, head_size = query.shape
    k_heads, k_length = key.shape[1], key.shape[2]
    if key.shape != value.shape or key.shape != (batch, k_heads, k_length, head_size):
        raise ValueError(
            "key and value must both be (B, Hkv, K, D) with query's B and D: found query "
            f"{tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
        )
    if q_heads % k_heads or q_length > k_length:
        raise ValueError(
            f"query heads must be a multiple of key heads and Q at most K: found {q_heads} and {k_heads} heads, "
            f"Q={q_length}, K={k_length}"
        )
    if key_padding_mask is None:
        key_padding_mask = torch.ones_like(key_modality, dtype=torch.bool)
    for name, found, expected in (
        ("query_modality", query_modality, (batch, q_length)),
        ("key_modality", key_modality, (batch, k_length)),
        ("key_padding_mask", key_padding_mask, (batch, k_length)),
    ):
        if tuple(found.shape) != expected:
            raise ValueError(f"{name} must have shape {expected}, found {tuple(found.shape)}")
    return IMPLEMENTATIONS[implementation](
        query,
        key,
        value,
        kind=attention_kind(kind),
        query_modality=query_modality,
        key_modality=key_modality,
        key_padding_mask=key_padding_mask.bool(),
        scale=head_size**-0.5 if scale is None else scale,
    )

"""MMCA on torch's fused `scaled_dot_product_attention`: only text queries are computed, on compacted text and images.

An image token's output is its own value, so image queries need no attention at all. Text queries are gathered; their
text side is plain causal attention on the compacted text, their image side sees the compacted image keys that stand
before them.
Source: arXiv 2309.14327, section 4.1.

Shapes: B batch, Hq query heads, Hkv key heads, Q queries, K keys, D head size; T text queries, C compacted keys of one
side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from visualchat.attention.kinds import KINDS, AttentionKind, Modality


def compact(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the True entries of each row, in order, padded to the longest row.

    Args:
        chosen: (B, N) bool.

    Returns:
        index: (B, C) positions; beyond a row's own count they point at entries that were not chosen.
        valid: (B, C) bool, False at that surplus.
    """
    counts = chosen.sum(1)
    longest = int(counts.max())
    index = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    return index, torch.arange(longest, device=chosen.device)[None] < counts[:, None]


def take(tensor: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, C) of `tensor` (B, H, N, D): (B, H, C, D)."""
    return tensor.gather(2, index[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))


def attend_some(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scale: float, gqa: bool) -> Tensor:
    """Attention under a mask (B, T, C) in which a query that sees nothing gets exactly 0, with a gradient of 0."""
    any_key = mask.any(-1, keepdim=True)
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=(mask | ~any_key)[:, None], scale=scale, enable_gqa=gqa
    )
    return out.masked_fill(~any_key[:, None], 0.0)


def sdpa_attention(
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
    """See `visualchat.attention.multimodal_attention`.

    Raises:
        ValueError: The kind is not `mmca`.
    """
    if kind != KINDS["mmca"]:
        raise ValueError(f"the gathered form serves kind 'mmca', found {kind}")
    q_length, k_length = query.shape[2], key.shape[2]
    gqa = query.shape[1] != key.shape[1]
    offset = k_length - q_length
    text_query = (query_modality == Modality.TEXT) & key_padding_mask[:, offset:]
    own_value = value[:, :, offset:].repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    out = own_value * ((query_modality == Modality.IMAGE) & key_padding_mask[:, offset:])[:, None, :, None]

    rows, row_valid = compact(text_query)
    if rows.shape[1] == 0:
        return out
    q = take(query, rows)
    position = rows + offset

    text, text_valid = compact((key_modality == Modality.TEXT) & key_padding_mask)
    k, v = take(key, text), take(value, text)
    if offset == 0:  # the queries are the keys: compacted text is plain causal attention, no mask needed
        side = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
    else:
        seen = (text[:, None, :] <= position[:, :, None]) & text_valid[:, None, :]
        side = attend_some(q, k, v, seen, scale=scale, gqa=gqa)

    image, image_valid = compact((key_modality == Modality.IMAGE) & key_padding_mask)
    if image.shape[1]:
        seen = (image[:, None, :] < position[:, :, None]) & image_valid[:, None, :]
        side = side + attend_some(q, take(key, image), take(value, image), seen, scale=scale, gqa=gqa)

    # Surplus rows point at places that are not text: they add zero there.
    side = side.masked_fill(~row_valid[:, None, :, None], 0.0)
    return out.scatter_add(2, rows[:, None, :, None].expand_as(side), side)

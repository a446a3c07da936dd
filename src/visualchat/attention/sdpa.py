"""The family on torch's fused `scaled_dot_product_attention`, without masks over the whole sequence.

Text queries are gathered: their text side is plain causal attention on the compacted text, their image side sees a
stretch of the compacted images, the same for all text between two images. An image token's output is its own value
where it sees only itself, or comes from its own small group. Memory is linear in length. Source: arXiv 2309.14327,
section 4.1.

Shapes: B batch, Hq query heads, Hkv key heads, Q queries, K keys, D head size; T compacted text, I compacted images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from visualchat.attention.kinds import AttentionKind, Modality
from visualchat.attention.layout import Layout, visible
from visualchat.attention.parts import attend_parts, available
from visualchat.attention.plan_cache import remembered
from visualchat.attention.sdpa_plan import Compact, Groups, Mask, Piece, Plan, Rows, make_plan

GATHERED = ("self", "image", "label", "unit")
"""Image contexts with a form of their own; the others run under masks."""


def sdpa_attention(
    query: Tensor, key: Tensor, value: Tensor, *, kind: AttentionKind, layout: Layout, scale: float
) -> Tensor:
    """See `visualchat.attention.multimodal_attention`."""
    plain = kind.image_context == "all" and kind.softmax == "joint"
    if layout.offset == 0 and (plain or kind.image_context in GATHERED):
        found = remembered(make_plan, kind, layout, query.dtype, available(query))
        return _gathered(query, key, value, kind, found, scale)
    if query.shape[2] == 1:
        return _decode(query, key, value, remembered(_stacked_sides, kind, layout, query.dtype), scale)
    sides = remembered(_sides, kind, layout, query.dtype)
    gqa = query.shape[1] != key.shape[1]
    out = _attend_some(query, key, value, sides[0], scale, gqa)
    for side in sides[1:]:
        out = out + _attend_some(query, key, value, side, scale, gqa)
    return out


def _gathered(query: Tensor, key: Tensor, value: Tensor, kind: AttentionKind, plan: Plan, scale: float) -> Tensor:
    """Training and prefill: the queries are the keys."""
    if plan.apart and plan.text.length and available(query):
        out = attend_parts(query, key, value, plan, scale)
        return (out if plan.groups is None else _add_groups(out, query, key, value, plan.groups, scale)).transpose(1, 2)
    groups = query.shape[1] // value.shape[1]
    if kind.image_context == "self":
        own = value.transpose(1, 2)
        own = own if groups == 1 else own.repeat_interleave(groups, dim=2)
        out = own * plan.image[:, :, None, None]  # (B, S, Hq, D) from here on
    else:
        out = torch.zeros_like(query.transpose(1, 2))
    if plan.groups is not None:
        out = _add_groups(out, query, key, value, plan.groups, scale)
    if plan.text.length == 0:
        return out.transpose(1, 2)
    gqa = groups > 1
    q, k, v = (_take(tensor, plan.text) for tensor in (query, key, value))
    if plan.segments is None:
        side = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
    else:
        side = _attend_pieces(q, k, v, plan.segments, scale, gqa, causal=True)
    if plan.images is not None:
        image_key, image_value = _take(key, plan.images), _take(value, plan.images)
        if plan.view_mask is not None:
            side = side + _attend_some(q, image_key, image_value, plan.view_mask, scale, gqa)
        else:
            assert plan.views is not None
            side = side + _attend_pieces(q, image_key, image_value, plan.views, scale, gqa)
    if plan.text.everything:
        return side if plan.all_count else torch.where(plan.result[:, None, :, None], side, out.transpose(1, 2))
    if not plan.all_count:  # results that do not count point at tokens of other kinds: they add zero there
        side = side.masked_fill(~plan.result[:, None, :, None], 0.0)
    return _add_rows(out, plan.text.flat, side).transpose(1, 2)


def _take(tensor: Tensor, chosen: Compact) -> Tensor:
    """The chosen tokens of `tensor` (B, H, S, D): (B, H, C, D).

    Whole tokens are copied, (H, D) at once: many times faster on a CPU than `gather`, also where it must lay the
    tensor out anew first (transformers' models lay it out like this).
    """
    return tensor if chosen.everything else _rows(tensor, chosen.flat).unflatten(0, (len(tensor), -1)).transpose(1, 2)


def _rows(tensor: Tensor, index: Tensor) -> Tensor:
    """The tokens of `tensor` (B, H, S, D) at flat positions (N) in B × S: (N, H, D)."""
    return tensor.transpose(1, 2).flatten(0, 1).index_select(0, index)


def _add_rows(out: Tensor, index: Tensor, results: Tensor) -> Tensor:
    """`out` (B, S, H, D), which may be changed, with `results` (·, H, ·, D) added at flat positions in B × S."""
    rows = results.transpose(1, 2).flatten(0, 1)
    return out.flatten(0, 1).index_add_(0, index, rows).view(out.shape)


def _attend_pieces(
    query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, gqa: bool, *, causal: bool = False
) -> Tensor:
    """Mask-free attention of each stretch of queries to its stretch of keys; 0 where that is empty."""

    def row(q: Tensor, k: Tensor, v: Tensor, pieces: list[Piece]) -> Tensor:
        outs = [
            scaled_dot_product_attention(
                q[:, :, p.start : p.stop],
                k[:, :, p.first : p.last],
                v[:, :, p.first : p.last],
                is_causal=causal,
                scale=scale,
                enable_gqa=gqa,
            )
            if p.first < p.last
            else torch.zeros_like(q[:, :, p.start : p.stop])
            for p in pieces
        ]
        surplus = q.shape[2] - (pieces[-1].stop if pieces else 0)
        if surplus:
            outs.append(torch.zeros_like(q[:, :, :surplus]))
        return torch.cat(outs, dim=2)

    if len(rows) == 1:
        return row(query, key, value, rows[0])
    one = (slice(b, b + 1) for b in range(len(query)))
    return torch.cat([row(query[b], key[b], value[b], pieces) for b, pieces in zip(one, rows, strict=True)])


def _attend_some(query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float, gqa: bool) -> Tensor:
    """Attention under a mask in which a query that sees nothing gets exactly 0, with a gradient of 0."""
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask.bias, scale=scale, enable_gqa=gqa)
    return out if mask.empty is None else out.masked_fill(mask.empty, 0.0)


def _add_groups(out: Tensor, query: Tensor, key: Tensor, value: Tensor, groups: Groups, scale: float) -> Tensor:
    """`out` (B, S, Hq, D) with the results of all groups, each attending among its own tokens, in their places."""
    index = groups.index.flatten()
    q, k, v = (_rows(tensor, index).unflatten(0, groups.index.shape).transpose(1, 2) for tensor in (query, key, value))
    gqa = query.shape[1] != key.shape[1]
    found = sum(_attend_some(q, k, v, mask, scale, gqa) for mask in groups.masks)
    assert isinstance(found, Tensor)
    return _add_rows(out, index, found.masked_fill(~groups.valid[:, None, :, None], 0.0))


@torch.compiler.disable
def _sides(kind: AttentionKind, layout: Layout, dtype: torch.dtype) -> tuple[Mask, ...]:
    """The dense masks of the softmaxes that are added."""
    seen = visible(kind, layout)
    if kind.softmax == "joint":
        return (Mask.of(seen, dtype),)
    image = (layout.modality == Modality.IMAGE)[:, None, :]
    return Mask.of(seen & ~image, dtype), Mask.of(seen & image, dtype)


@torch.compiler.disable
def _stacked_sides(kind: AttentionKind, layout: Layout, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The sides of one query as one tensor (B, 1, 1, sides, K), and where a side is empty (B, 1, 1, sides, 1), if any.

    A side that is empty in every row, as where there is no image, is left out.
    """
    sides = [side for side in _sides(kind, layout, dtype) if side.empty is None or not side.empty.all()]
    sides = sides or [*_sides(kind, layout, dtype)[:1]]
    bias = torch.stack([side.bias for side in sides], dim=-2)
    if all(side.empty is None for side in sides):
        return bias, None
    none = torch.zeros(len(bias), 1, 1, 1, dtype=torch.bool, device=bias.device)
    return bias, torch.stack([none if side.empty is None else side.empty for side in sides], dim=-2)


def _decode(query: Tensor, key: Tensor, value: Tensor, stacked: tuple[Tensor, Tensor | None], scale: float) -> Tensor:
    """One query: its scores are computed once, and each side's softmax weighs its own keys."""
    bias, empty = stacked
    batch, heads, _, size = query.shape
    q = (query * scale).reshape(batch, key.shape[1], -1, size)  # (B, Hkv, Hq / Hkv, D)
    scores = (q @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32))
    weights = (scores.unsqueeze(-2) + bias).softmax(-1)  # (B, Hkv, Hq / Hkv, sides, K)
    if empty is not None:
        weights = weights.masked_fill(empty, 0.0)
    weights = weights.sum(-2) if bias.shape[-2] > 1 else weights.squeeze(-2)
    return (weights.to(value.dtype) @ value).reshape(batch, heads, 1, size)

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

from visualchat.attention.cached import attend_cached, make_cached_plan
from visualchat.attention.compact import Mask, Piece, Rows, add_at, take
from visualchat.attention.kinds import AttentionKind
from visualchat.attention.layout import Layout
from visualchat.attention.parts import attend_parts, available, in_groups
from visualchat.attention.plan_cache import planned
from visualchat.attention.sdpa_plan import Groups, Plan, Side, make_plan, make_sides

GATHERED = ("self", "image", "label", "unit")
"""Image contexts with a form of their own; the others run under masks."""


def sdpa_attention(
    query: Tensor, key: Tensor, value: Tensor, *, kind: AttentionKind, layout: Layout, scale: float
) -> Tensor:
    """See `visualchat.attention.multimodal_attention`."""
    plain = kind.image_context == "all" and kind.softmax == "joint"
    gathered = plain or kind.image_context in GATHERED
    if layout.offset == 0 and gathered:
        found = planned(make_plan, kind, layout, query.dtype, available(query))
        return _gathered(query, key, value, kind, found, scale)
    if layout.queries > 1 and gathered and available(query) and not _is_trained(query, key, value):
        on_cache = planned(make_cached_plan, kind, layout, query.dtype)
        if on_cache is not None:
            return attend_cached(query, key, value, on_cache, scale).transpose(1, 2)
    sides = planned(make_sides, kind, layout, query.dtype)
    if sides.stacked is not None:
        return _decode(query, key, value, sides.stacked, scale)
    if not sides.apart:  # padding alone
        return query * 0.0
    gqa = query.shape[1] != key.shape[1]
    out = _attend_side(query, key, value, sides.apart[0], scale, gqa)
    for side in sides.apart[1:]:
        out = out + _attend_side(query, key, value, side, scale, gqa)
    return out


def _is_trained(*tensors: Tensor) -> bool:
    """Whether a gradient is wanted."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _gathered(query: Tensor, key: Tensor, value: Tensor, kind: AttentionKind, plan: Plan, scale: float) -> Tensor:
    """Training and prefill: the queries are the keys."""
    if plan.parts is not None:
        return attend_parts(query, key, value, plan, scale).transpose(1, 2)
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
    q, k, v = (take(tensor, plan.text) for tensor in (query, key, value))
    if plan.segments is None:
        side = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
    else:
        side = _attend_pieces(q, k, v, plan.segments, scale, gqa, causal=True)
    if plan.images is not None:
        image_key, image_value = take(key, plan.images), take(value, plan.images)
        if plan.view_mask is not None:
            side = side + _attend_some(q, image_key, image_value, plan.view_mask, scale, gqa)
        else:
            assert plan.views is not None
            side = side + _attend_pieces(q, image_key, image_value, plan.views, scale, gqa)
    if plan.text.everything:
        return side if plan.all_count else torch.where(plan.result[:, None, :, None], side, out.transpose(1, 2))
    if not plan.all_count:  # results that do not count point at tokens of other kinds: they add zero there
        side = side.masked_fill(~plan.result[:, None, :, None], 0.0)
    return add_at(out, plan.text.flat, side).transpose(1, 2)


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


def _attend_side(query: Tensor, key: Tensor, value: Tensor, side: Side, scale: float, gqa: bool) -> Tensor:
    """One softmax of queries on top of a cache."""
    if side.last - side.first < key.shape[2]:
        key, value = key[:, :, side.first : side.last], value[:, :, side.first : side.last]
    if side.mask is None:
        return scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=gqa)
    return _attend_some(query, key, value, side.mask, scale, gqa)


def _add_groups(out: Tensor, query: Tensor, key: Tensor, value: Tensor, groups: Groups, scale: float) -> Tensor:
    """`out` (B, S, Hq, D) with the results of all groups, each attending among its own tokens, in their places."""
    q, k, v = (in_groups(tensor, groups) for tensor in (query, key, value))
    gqa = query.shape[1] != key.shape[1]
    if groups.causal:
        result = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
    else:
        sides = [_attend_some(q, k, v, mask, scale, gqa) for mask in groups.masks if mask is not None]
        result = sides[0] if len(sides) == 1 else sides[0] + sides[1]
    return add_at(out, groups.index.flatten(), groups.without_surplus(result))


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

"""The family on torch's fused `scaled_dot_product_attention`, without masks over the whole sequence.

Text queries are gathered: their text side is plain causal attention on the compacted text, their image side sees a
stretch of the compacted images, the same for all text between two images. An image token's output is its own value
where it sees only itself, or comes from its own small group. Memory is linear in length. Source: arXiv 2309.14327,
section 4.1.

Shapes: B batch, Hq query heads, Hkv key heads, Q queries, K keys, D head size; T compacted text, I compacted images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from visualchat.attention.kinds import AttentionKind, Modality
from visualchat.attention.layout import Layout, visible
from visualchat.attention.pieces import Compact, Groups, Piece, Plan, Rows, plan

T = TypeVar("T")

GATHERED = ("self", "image", "label", "unit")
"""Image contexts with a form of their own; the others run under masks."""


def sdpa_attention(
    query: Tensor, key: Tensor, value: Tensor, *, kind: AttentionKind, layout: Layout, scale: float
) -> Tensor:
    """See `visualchat.attention.multimodal_attention`."""
    plain = kind.image_context == "all" and kind.softmax == "joint"
    if layout.offset == 0 and (plain or kind.image_context in GATHERED):
        return _gathered(query, key, value, kind, _remembered(plan, kind, layout), scale)
    sides = _remembered(_sides, kind, layout)
    if query.shape[2] == 1:
        return _decode(query, key, value, sides, scale)
    gqa = query.shape[1] != key.shape[1]
    out = _attend_some(query, key, value, sides[0], scale, gqa)
    for side in sides[1:]:
        out = out + _attend_some(query, key, value, side, scale, gqa)
    return out


def _gathered(query: Tensor, key: Tensor, value: Tensor, kind: AttentionKind, plan: Plan, scale: float) -> Tensor:
    """Training and prefill: the queries are the keys."""
    if kind.image_context == "self":
        own = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        out = own * plan.image[:, None, :, None]
    else:
        out = torch.zeros_like(query)
    if plan.groups is not None:
        out = _add_groups(out, query, key, value, plan.groups, kind, scale)
    if plan.text.length == 0:
        return out
    gqa = query.shape[1] != key.shape[1]
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
    if plan.only:
        return side
    # Results that do not count point at tokens of other kinds: they add zero there.
    side = side.masked_fill(~plan.result[:, None, :, None], 0.0)
    return out.scatter_add(2, plan.text.index[:, None, :, None].expand_as(side), side)


def _take(tensor: Tensor, chosen: Compact) -> Tensor:
    """The chosen tokens of `tensor` (B, H, S, D): (B, H, C, D)."""
    if chosen.everything:
        return tensor
    return tensor.gather(2, chosen.index[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))


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


def _attend_some(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, gqa: bool) -> Tensor:
    """Attention under a mask (B, Q, K) in which a query that sees nothing gets exactly 0, with a gradient of 0."""
    any_key = mask.any(-1, keepdim=True)
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=(mask | ~any_key)[:, None], scale=scale, enable_gqa=gqa
    )
    return out.masked_fill(~any_key[:, None], 0.0)


def _add_groups(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, groups: Groups, kind: AttentionKind, scale: float
) -> Tensor:
    """`out` with the results of all groups, each attending among its own tokens, put in their places."""
    batch, heads, length, size = out.shape
    q, k, v = (
        tensor.transpose(1, 2).reshape(batch * length, tensor.shape[1], size)[groups.index].transpose(1, 2)
        for tensor in (query, key, value)
    )
    gqa = query.shape[1] != key.shape[1]
    if kind.softmax == "joint":
        found = _attend_some(q, k, v, groups.text_mask | groups.image_mask, scale, gqa)
    else:
        found = _attend_some(q, k, v, groups.text_mask, scale, gqa)
        found = found + _attend_some(q, k, v, groups.image_mask, scale, gqa)
    found = found.transpose(1, 2)[groups.valid]
    flat = out.transpose(1, 2).reshape(batch * length, heads, size)
    flat = flat.index_copy(0, groups.index[groups.valid], found)
    return flat.view(batch, length, heads, size).transpose(1, 2)


@torch.compiler.disable
def _sides(kind: AttentionKind, layout: Layout) -> tuple[Tensor, ...]:
    """The dense masks (B, Q, K) of the softmaxes that are added."""
    seen = visible(kind, layout)
    if kind.softmax == "joint":
        return (seen,)
    image = (layout.modality == Modality.IMAGE)[:, None, :]
    return seen & ~image, seen & image


def _decode(query: Tensor, key: Tensor, value: Tensor, sides: tuple[Tensor, ...], scale: float) -> Tensor:
    """One query: its scores are computed once, and each side's softmax weighs its own keys."""
    batch, heads, _, size = query.shape
    kv_heads = key.shape[1]
    q = query.reshape(batch, kv_heads, heads // kv_heads, size)
    scores = (q @ key.transpose(-1, -2) * scale).to(torch.promote_types(query.dtype, torch.float32))
    weights = torch.zeros_like(scores)
    for side in sides:
        any_key = side.any(-1, keepdim=True)[:, None]
        masked = scores.masked_fill(~side[:, None] & any_key, float("-inf"))
        weights = weights + masked.softmax(-1) * any_key
    return (weights.to(value.dtype) @ value).reshape(batch, heads, 1, size)


_memory: tuple[tuple[object, ...], Any, list[Tensor]] = ((), None, [])


def _remembered(compute: Callable[[AttentionKind, Layout], T], kind: AttentionKind, layout: Layout) -> T:
    """`compute(kind, layout)`, kept until the layout changes: the layers of a model share one."""
    global _memory
    tensors = [t for t in layout.tensors if t is not None]
    if any(t.is_inference() for t in tensors):  # such tensors do not tell when they are written to
        return compute(kind, layout)
    names = tuple((None if t is None else id(t), None if t is None else t._version) for t in layout.tensors)
    name = (compute, kind, layout.queries, *names)
    if _memory[0] != name:
        _memory = (name, compute(kind, layout), tensors)  # the tensors are kept, so that no other takes their identity
    found: T = _memory[1]
    return found

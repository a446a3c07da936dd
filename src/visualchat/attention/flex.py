"""The family on torch's FlexAttention, for GPUs: masks by a rule, whole blocks of tokens skipped.

Which blocks hold anything is found from counts and bounds per block of tokens, never from a Q × K mask, once a forward
pass. Sources: arXiv 2412.05496 (FlexAttention), arXiv 2309.14327 section 4.1 (the family). FlexAttention has no
backward on CPU and is imported only when it is used.

Shapes: B batch, Hq query heads, Hkv key heads, Q queries, K keys, D head size; M and N blocks of queries and of keys.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from visualchat.attention.kinds import AttentionKind, Modality
from visualchat.attention.layout import Layout
from visualchat.attention.plan_cache import planned

BLOCK = 128
"""Tokens a block: FlexAttention's own size."""

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def flex_attention(
    query: Tensor, key: Tensor, value: Tensor, *, kind: AttentionKind, layout: Layout, scale: float
) -> Tensor:
    """See `visualchat.attention.multimodal_attention`.

    Raises:
        ValueError: A gradient is wanted on a CPU.
    """
    on_cpu = query.device.type == "cpu"
    if on_cpu and torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)):
        raise ValueError("implementation 'flex' has no backward on CPU: use 'sdpa', or torch.no_grad()")
    if on_cpu:  # torch asks whether a tensor requires a gradient, also where none is taken
        query, key, value = query.detach(), key.detach(), value.detach()
    attend = _plain() if on_cpu else _compiled()
    gqa = query.shape[1] != key.shape[1]
    out = None
    for block_mask in planned(block_masks, kind, layout):
        side = attend(query, key, value, block_mask=block_mask, scale=scale, enable_gqa=gqa)
        out = side if out is None else out + side
    assert out is not None
    if kind.image_context != "self":
        return out
    image = layout.of(Modality.IMAGE)[:, None, layout.offset :, None]
    own = value[:, :, layout.offset :].repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    return torch.where(image, own, out)


def _plain() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(_plain())
    return compiled


@torch.compiler.disable
def block_masks(kind: AttentionKind, layout: Layout) -> list[Any]:
    """The `BlockMask` of each softmax that is added; under context `self` an image row is left out of all of them."""
    if kind.softmax == "joint":
        return [_block_mask(kind, layout, None)]
    return [_block_mask(kind, layout, side) for side in (Modality.TEXT, Modality.IMAGE)]


def _block_mask(kind: AttentionKind, layout: Layout, side: Modality | None) -> Any:
    """The blocks of one softmax, over keys of one modality or of both."""
    from torch.nn.attention.flex_attention import BlockMask

    some, all_of_it = block_map(kind, layout, side)
    return BlockMask.from_kv_blocks(
        *_ordered(some),
        *_ordered(all_of_it),
        BLOCK_SIZE=BLOCK,
        mask_mod=_rule(kind, layout, side),
        seq_lengths=(layout.queries, layout.modality.shape[1]),
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks (B, M, N) in FlexAttention's form: how many a row (B, 1, M), and their numbers, first (B, 1, M, N)."""
    counts = blocks.sum(-1, dtype=torch.int32)
    numbers = (~blocks).to(torch.uint8).argsort(dim=-1, stable=True).to(torch.int32)
    return counts[:, None], numbers[:, None].contiguous()


def _rule(kind: AttentionKind, layout: Layout, side: Modality | None) -> Rule:
    """Whether query `q` sees key `k`; the rule of `layout.visible`, one pair at a time."""
    context, offset = kind.image_context, layout.offset
    segment, ids = layout.segment_ids, _group_ids(kind, layout)
    image = layout.modality == int(Modality.IMAGE)  # outside the rule, which a compiler traces
    is_key = layout.real() if side is None else layout.of(side)

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q = q + offset
        image_q, text_k = image[b, q], ~image[b, k]
        before = k <= q
        seen = before
        if context == "self":
            seen = before & ~image_q
        elif context == "text":
            seen = before & (~image_q | text_k | (k == q))
        elif ids is not None:
            own = (ids[b, q] == ids[b, k]) & (ids[b, k] >= 0)
            if context == "image":
                seen = torch.where(image_q, (own & ~text_k) | (k == q), before)
            else:
                of_image = own if context == "unit" else own & text_k
                of_label = (ids[b, q] >= 0) & ~image_q
                of_text = torch.where(of_label, own & text_k, before | own)
                seen = torch.where(image_q, of_image | (k == q), of_text) & before
        seen = seen & is_key[b, k]
        return seen if segment is None else seen & (segment[b, q] == segment[b, k])

    return sees


def _group_ids(kind: AttentionKind, layout: Layout) -> Tensor | None:
    """The ids (B, K) of what attends among itself, where the kind has that."""
    if kind.image_context == "image":
        return layout.image_ids
    return layout.unit_ids if kind.uses_units else None


def block_map(kind: AttentionKind, layout: Layout, side: Modality | None) -> tuple[Tensor, Tensor]:
    """Which blocks need the rule and which are seen in full, both (B, M, N) bool; all others are skipped.

    The first may hold blocks in which nothing is seen (bounds are generous); the second never one with a gap.
    """
    first, last, rows, plain = _bounds(kind, layout)
    length = layout.modality.shape[1]
    is_key = layout.real() if side is None else layout.of(side)
    low = _blocks(first.masked_fill(~rows, length), length).amin(-1)  # (B, M)
    high = _blocks(last.masked_fill(~rows, 0), 0).amax(-1)
    begin = torch.arange(0, length, BLOCK, device=first.device)  # (N,)
    holds = _blocks(is_key, False)
    some = (begin < high[..., None]) & (begin + BLOCK > low[..., None]) & holds.any(-1)[:, None]
    # Full: every query is plain text that sees all keys of the block, and every key counts.
    start = _blocks(first.masked_fill(~plain, length), length).amax(-1)
    end = _blocks(last.masked_fill(~plain, 0), 0).amin(-1)
    full = (begin >= start[..., None]) & (begin + BLOCK <= end[..., None]) & holds.all(-1)[:, None]
    return some & ~full, full


def _blocks(tokens: Tensor, fill: int | bool) -> Tensor:
    """(B, L) cut into blocks (B, L / BLOCK rounded up, BLOCK)."""
    surplus = -tokens.shape[1] % BLOCK
    return torch.nn.functional.pad(tokens, (0, surplus), value=fill).unflatten(1, (-1, BLOCK))


def _bounds(kind: AttentionKind, layout: Layout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four facts of each query, (B, Q) each: first, last, rows, plain.

    All that it sees lies in the keys [first, last); `rows` tells whether it attends, `plain` whether it sees all of
    these keys.
    """
    query = slice(layout.offset, None)
    position = torch.arange(layout.modality.shape[1], device=layout.modality.device).expand_as(layout.modality)
    image = layout.modality == Modality.IMAGE
    first, last = torch.zeros_like(position), position + 1
    if layout.segment_ids is not None:
        first = _group_ends(layout.segment_ids, position)[0]
    ids = _group_ids(kind, layout)
    plain = ~image | (kind.image_context == "all")
    if ids is not None:
        member = ids >= 0 if kind.uses_units else (ids >= 0) & image
        low, high = _group_ends(ids.masked_fill(~member, -1), position)
        first = torch.where(member, torch.maximum(first, low), first)
        if kind.image_context == "image":
            last = torch.where(member, high + 1, last)
        plain = plain & ~member
    rows = layout.real() if kind.image_context != "self" else layout.of(Modality.TEXT)
    return first[:, query], last[:, query], rows[:, query], (plain & layout.real())[:, query]


def _group_ends(ids: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """The first and last position (B, K) of each token's group; tokens with a negative id have no group."""
    slot = (ids + 1).clamp(min=0)  # slot 0: no group
    shape = (ids.shape[0], int(slot.max()) + 1)
    far = position.new_full(shape, ids.shape[1])
    low = far.scatter_reduce(1, slot, position, "amin").gather(1, slot)
    high = torch.zeros_like(far).scatter_reduce(1, slot, position, "amax").gather(1, slot)
    return low, high

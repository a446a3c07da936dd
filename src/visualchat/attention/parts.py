"""Attention over parts of the keys, and their results brought together; few calls, gradients written in place.

The queries of text attend without a mask to what stands before their block, and causally within it (`parts_plan.py`);
images that see more than themselves attend in groups, with their labels. Results over parts of the keys of one softmax
are weighted by their log-sum-exp, which gives exactly what one call over all of them gives; the gradient of each part
is exact if its backward pass is given the merged result and log-sum-exp, as in ring attention (arXiv 2310.01889).
torch's fused kernel for CPUs returns and takes it. Under split softmax the results of the two sides are added.

Shapes: B batch, Hq query heads, Hkv key heads, S sequence, D head size; T compacted queries; G groups, M tokens of the
largest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from visualchat.attention.compact import Compact, Mask, Piece, Rows
from visualchat.attention.parts_plan import Blocks, Part
from visualchat.attention.sdpa_plan import Groups, Plan

Triple = tuple[Tensor, Tensor, Tensor]

_FORWARD = "_scaled_dot_product_flash_attention_for_cpu"


@lru_cache(maxsize=1)
def _operators() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """torch's fused attention for CPUs, forward and backward; None where this torch has none, which is said once."""
    found = getattr(torch.ops.aten, _FORWARD, None), getattr(torch.ops.aten, f"{_FORWARD}_backward", None)
    if found[0] is not None and found[1] is not None:
        return found[0], found[1]
    missing = f"torch {torch.__version__} has no aten::{_FORWARD}"
    warnings.warn(f"{missing}: over images one softmax costs as much as causal attention", stacklevel=2)
    return None


@torch.compiler.disable
def available(query: Tensor) -> bool:
    """Whether parts can be computed where these queries are."""
    return query.device.type == "cpu" and _operators() is not None


@torch.compiler.disable
def attend_parts(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> Tensor:
    """The results of all tokens in their places.

    Args:
        query: (B, Hq, S, D).
        key: (B, Hkv, S, D).
        value: (B, Hkv, S, D).
        plan: With text apart from images.
        scale: Factor on the scores.

    Returns:
        (B, S, Hq, D), 0 at padding.
    """
    out: Tensor = _Parts.apply(query, key, value, plan, scale)
    return out


class _Parts(torch.autograd.Function):
    """`attend_parts` with a backward pass of its own: no gradient of a slice is ever as long as the whole."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> Tensor:
        q = take(query, plan.text)
        kept, side = [q], None
        assert plan.parts is not None
        for part in plan.parts:
            keys, values = (key, value) if part.keys is None else (take(key, part.keys), take(value, part.keys))
            found, mass = _attend_part((q, keys, values), part, scale)
            kept += [keys, values, found, mass]
            side = found if side is None else side + found
        assert side is not None
        if not plan.all_count:
            side = side.masked_fill(~plan.result[:, None, :, None], 0.0)
        results = [(side, plan.text)]
        if plan.own_values and plan.images is not None:
            groups = query.shape[1] // value.shape[1]
            own = take(value, plan.images)
            own = own if groups == 1 else own.repeat_interleave(groups, dim=1)
            results.append((without_surplus(own, plan.images), plan.images))
        out = placed(query.shape, *results)
        inside: list[Tensor] = []
        if plan.groups is not None:
            inside = add_groups(out, (query, key, value), plan.groups, scale)
        ctx.save_for_backward(*kept, *inside)
        ctx.plan, ctx.scale, ctx.shapes, ctx.text = plan, scale, (query.shape, key.shape), len(kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan, scale = ctx.plan, ctx.scale
        q, *saved = ctx.saved_tensors[: ctx.text]
        upstream = grads[0].transpose(1, 2)  # (B, Hq, S, D)
        grad = take(upstream, plan.text)
        if not plan.all_count:
            grad = grad.masked_fill(~plan.result[:, None, :, None], 0.0)
        shape, key_shape = ctx.shapes
        grad_q, grad_k, grad_v = _zeros(q), None, None
        for number, part in enumerate(plan.parts):
            keys, values, *done = saved[4 * number : 4 * number + 4]
            new_k, new_v = _backward_part(grad_q, grad, (q, keys, values), (done[0], done[1]), part, scale)
            if part.keys is None:
                grad_k, grad_v = new_k.transpose(1, 2), new_v.transpose(1, 2)
            elif grad_k is None or grad_v is None:
                grad_k, grad_v = (placed(key_shape, (new, part.keys)) for new in (new_k, new_v))
            else:
                grad_k, grad_v = (
                    add_at(total, part.keys.flat, without_surplus(new, part.keys))
                    for total, new in ((grad_k, new_k), (grad_v, new_v))
                )
        assert grad_k is not None
        assert grad_v is not None
        if plan.own_values and plan.images is not None:
            own = take(upstream, plan.images)
            own = own.unflatten(1, (key_shape[1], -1)).sum(2) if own.shape[1] > key_shape[1] else own
            grad_v = add_at(grad_v, plan.images.flat, without_surplus(own, plan.images))
        found = (placed(shape, (grad_q, plan.text)), grad_k, grad_v)
        if plan.groups is not None:
            _backward_groups(found, upstream, ctx.saved_tensors[ctx.text :], plan.groups, scale)
        return (*(each.transpose(1, 2) for each in found), None, None)


def _attend_part(qkv: Triple, part: Part, scale: float) -> tuple[Tensor, Tensor]:
    """Results (B, Hq, T, D) and log-sum-exp (B, Hq, T) of one softmax."""
    out, mass = attend(qkv, None if part.mask is not None else part.by_query, scale, mask=part.mask)
    if not part.blocks:
        return out, mass
    near, near_mass = _forward_blocks(qkv, part.blocks, scale)
    total = torch.logaddexp(mass, near_mass)
    out = out.mul_((mass - total).exp().to(out.dtype)[..., None])
    return out.addcmul_(near, (near_mass - total).exp().to(out.dtype)[..., None]), total


def _forward_blocks(qkv: Triple, blocks: tuple[Blocks, ...], scale: float) -> tuple[Tensor, Tensor]:
    """As `_attend_part`, of blocks that attend among themselves; 0 at the surplus of the text."""
    operators = _operators()
    assert operators is not None
    q, k, v = qkv
    rows = len(q)
    out, mass = _zeros(q), q.new_zeros(rows, q.shape[2], q.shape[1], dtype=_mass_type(q.dtype))
    flat = out.transpose(1, 2).flatten(0, 1), mass.flatten(0, 1)
    for some in blocks:
        each = (_block(t, index, some.shape) for t, index in ((q, some.index), (k, some.keys), (v, some.keys)))
        found = [t.transpose(1, 2).flatten(0, 1) for t in operators[0](*each, is_causal=True, scale=scale)]
        if some.index is None:
            flat = found[0], found[1]
            continue
        for total, new in zip(flat, found, strict=True):
            if some.chosen is None:
                total.index_copy_(0, some.index, new)
            else:
                total.index_copy_(0, some.index[some.chosen], new[some.chosen])
    out, mass = (total.unflatten(0, (rows, -1)).transpose(1, 2) for total in flat)
    return out, mass


def _backward_part(
    grad_q: Tensor, grad: Tensor, qkv: Triple, done: tuple[Tensor, Tensor], part: Part, scale: float
) -> tuple[Tensor, Tensor]:
    """Add the queries' gradient to `grad_q` (B, Hq, T, D), and give those of keys and values."""
    if part.mask is not None:
        new_q, *others = _backward(grad, qkv, done, None, scale, mask=part.mask)
        grad_q.add_(new_q)
        return others[0], others[1]
    grads = grad_q, _zeros(qkv[1]), _zeros(qkv[2])
    _add_backward(grads, grad, qkv, done, part.by_key, scale)
    operators = _operators()
    assert operators is not None
    (q, k, v), (out, mass) = qkv, done
    for some in part.blocks:
        upstream, own_q, own_out = (_block(t, some.index, some.shape) for t in (grad, q, out))
        own_mass = _block(mass[..., None], some.index, some.shape)[..., 0]
        own_k, own_v = (_block(t, some.keys, some.shape) for t in (k, v))
        ends = some.without_surplus(upstream), own_q, own_k, own_v, own_out, own_mass
        new = operators[1](*ends, 0.0, True, scale=scale)
        for total, index, one in zip(grads, (some.index, some.keys, some.keys), new, strict=True):
            if index is None:
                total += one.transpose(1, 2).reshape(len(total), -1, *one.shape[1::2]).transpose(1, 2)
            else:
                add_at(total.transpose(1, 2), index, one)
    return grads[1], grads[2]


def _block(tensor: Tensor, index: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """The tokens of `tensor` (B, H, T, D) at flat positions, or all of them, (G, H, M, D)."""
    if index is None:
        return tensor.unflatten(2, (-1, shape[1])).transpose(1, 2).flatten(0, 1)
    return tokens_at(tensor, index).unflatten(0, shape).transpose(1, 2)


def _zeros(like: Tensor) -> Tensor:
    """Zeros like (B, H, T, D), laid out token by token."""
    return like.new_zeros(like.shape[0], like.shape[2], like.shape[1], like.shape[3]).transpose(1, 2)


def add_groups(out: Tensor, qkv: Triple, groups: Groups, scale: float) -> list[Tensor]:
    """Add the results of tokens that attend among themselves to `out` (B, S, Hq, D); what their gradient needs."""
    q, k, v = (in_groups(tensor, groups) for tensor in qkv)
    sides = [attend((q, k, v), None, scale, causal=groups.causal, mask=mask) for mask in groups.masks]
    result = sides[0][0] if len(sides) == 1 else sides[0][0] + sides[1][0]
    add_at(out, groups.index.flatten(), groups.without_surplus(result))
    return [q, k, v, *(tensor for side in sides for tensor in side)]


def _backward_groups(grads: Triple, upstream: Tensor, saved: tuple[Tensor, ...], groups: Groups, scale: float) -> None:
    """Add the gradients through the groups to those of query, key and value, each (B, S, H, D)."""
    index = groups.index.flatten()
    q, k, v, *done = saved
    grad = groups.without_surplus(in_groups(upstream, groups))
    for place, mask in enumerate(groups.masks):
        side = done[2 * place], done[2 * place + 1]
        found = _backward(grad, (q, k, v), side, None, scale, causal=groups.causal, mask=mask)
        for total, new in zip(grads, found, strict=True):  # surplus is neither seen nor asked, so its gradient is 0
            add_at(total, index, new)


def attend(
    qkv: Triple, rows: Rows | None, scale: float, *, causal: bool = False, mask: Mask | None = None
) -> tuple[Tensor, Tensor]:
    """Results (B, Hq, T, D) and log-sum-exp (B, Hq, T): in pieces, under a mask, or of all; 0 and -inf of no key."""
    operators = _operators()
    assert operators is not None
    q, k, v = qkv
    if rows is None:
        out, mass = operators[0](q, k, v, is_causal=causal, attn_mask=None if mask is None else mask.bias, scale=scale)
        if mask is not None and mask.empty is not None:
            out, mass = out.masked_fill(mask.empty, 0.0), mass.masked_fill(mask.empty[..., 0], float("-inf"))
        return out, mass
    found = []
    for batch, pieces in _by_row(rows, len(q)):
        parts = []
        for piece in pieces:
            some_q = q[batch, :, piece.start : piece.stop]
            if piece.first < piece.last:
                keys = slice(piece.first, piece.last)
                parts.append(operators[0](some_q, k[batch, :, keys], v[batch, :, keys], is_causal=causal, scale=scale))
            else:
                parts.append(_nothing(some_q))
        if surplus := q.shape[2] - (pieces[-1].stop if pieces else 0):
            parts.append(_nothing(q[batch, :, -surplus:]))
        found.append([torch.cat(each, dim=2) for each in zip(*parts, strict=True)])
    out, mass = (torch.cat(each) if len(each) > 1 else each[0] for each in zip(*found, strict=True))
    return out, mass


def _backward(
    grad: Tensor,
    qkv: Triple,
    done: tuple[Tensor, Tensor],
    rows: Rows | None,
    scale: float,
    *,
    causal: bool = False,
    mask: Mask | None = None,
) -> Triple:
    """Gradients of what `attend` was given; its results in `done` may be those of a softmax over further keys."""
    operators = _operators()
    assert operators is not None
    (q, k, v), (out, mass) = qkv, done
    if rows is None:
        if mask is not None and mask.empty is not None:  # weights of exactly 0 in rows that see nothing
            mass = mass.masked_fill(mask.empty[..., 0], float("inf"))
        bias = None if mask is None else mask.bias
        found: Triple = operators[1](grad, q, k, v, out, mass, 0.0, causal, attn_mask=bias, scale=scale)
        return found
    grads = _zeros(q), _zeros(k), _zeros(v)
    _add_backward(grads, grad, qkv, done, rows, scale)
    return grads


def _add_backward(
    grads: Triple, grad: Tensor, qkv: Triple, done: tuple[Tensor, Tensor], rows: Rows, scale: float
) -> None:
    """Add the gradients through pieces without a mask."""
    operators = _operators()
    assert operators is not None
    (q, k, v), (out, mass) = qkv, done
    for batch, pieces in _by_row(rows, len(q)):
        for piece in pieces:
            if piece.first < piece.last:
                queries = batch, slice(None), slice(piece.start, piece.stop)
                keys = batch, slice(None), slice(piece.first, piece.last)
                ends = q[queries], k[keys], v[keys], out[queries], mass[queries]
                new = operators[1](grad[queries], *ends, 0.0, False, scale=scale)
                for total, place, part in zip(grads, (queries, keys, keys), new, strict=True):
                    total[place] += part


def _by_row(rows: Rows, batch: int) -> Iterator[tuple[slice, list[Piece]]]:
    """The pieces of each row of the batch, or of all at once where they agree."""
    if len(rows) == 1:
        yield slice(None), rows[0]
        return
    for row, pieces in enumerate(rows):
        yield slice(row, row + 1), pieces


def _nothing(q: Tensor) -> tuple[Tensor, Tensor]:
    """What queries get that see no key."""
    return torch.zeros_like(q), q.new_full(q.shape[:3], float("-inf"), dtype=_mass_type(q.dtype))


def _mass_type(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def take(tensor: Tensor, chosen: Compact) -> Tensor:
    """The chosen tokens of `tensor` (B, H, S, D): (B, H, C, D).

    Whole tokens are copied, (H, D) at once: many times faster on a CPU than `gather`, also where it must lay the
    tensor out again first (transformers' models lay it out like this).
    """
    if chosen.everything:
        return tensor
    return tokens_at(tensor, chosen.flat).unflatten(0, (len(tensor), -1)).transpose(1, 2)


def in_groups(tensor: Tensor, groups: Groups) -> Tensor:
    """The tokens of each group of `tensor` (B, H, S, D): (G, H, M, D)."""
    return tokens_at(tensor, groups.index.flatten()).unflatten(0, groups.index.shape).transpose(1, 2)


def tokens_at(tensor: Tensor, index: Tensor) -> Tensor:
    """The tokens of `tensor` (B, H, S, D) at flat positions (N) in B × S: (N, H, D)."""
    return tensor.transpose(1, 2).flatten(0, 1).index_select(0, index)


def add_at(out: Tensor, index: Tensor, results: Tensor) -> Tensor:
    """`out` (B, S, H, D), which is changed, with `results` (·, H, ·, D) added at flat positions in B × S."""
    return out.flatten(0, 1).index_add_(0, index, results.transpose(1, 2).flatten(0, 1)).view(out.shape)


def without_surplus(tensor: Tensor, chosen: Compact) -> Tensor:
    """0 where a row has fewer chosen tokens than the longest."""
    return tensor if chosen.full else tensor.masked_fill(~chosen.valid[:, None, :, None], 0.0)


def placed(shape: torch.Size, *parts: tuple[Tensor, Compact]) -> Tensor:
    """Each part (B, H, C, D) at its chosen tokens of (B, S, H, D), 0 elsewhere; `shape` is (B, H, S, D).

    What a part has at the surplus of its tokens is 0.
    """
    first, chosen = parts[0]
    if chosen.everything:
        return first.transpose(1, 2).contiguous()
    whole = all(tokens.full for _, tokens in parts) and sum(tokens.length for _, tokens in parts) == shape[2]
    total = (first.new_empty if whole else first.new_zeros)(shape[0], shape[2], shape[1], shape[3])
    for found, tokens in parts:
        if whole or found is first:
            total.flatten(0, 1).index_copy_(0, tokens.flat, found.transpose(1, 2).flatten(0, 1))
        else:
            add_at(total, tokens.flat, found)
    return total

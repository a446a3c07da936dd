"""Attention over parts of the keys, and their results brought together; few calls, gradients written in place.

The queries of text attend without a mask to what stands before their run, and causally within it (`parts_plan.py`);
images that see more than themselves attend in groups, with their labels. Results over parts of the keys of one softmax
are weighted by their log-sum-exp, which gives exactly what one call over all of them gives; the gradient of each part
is exact if its backward pass is given the merged result and log-sum-exp, as in ring attention (arXiv 2310.01889).
torch's fused kernel for CPUs returns and takes it. Under split softmax the results of the two sides are added.

Shapes: B batch, Hq query heads, Hkv key heads, S sequence, D head size; T compacted queries; G groups, M tokens of the
largest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from visualchat.attention.compact import Compact, Mask, Piece, Rows, add_at, placed, take, tokens_at, without_surplus
from visualchat.attention.parts_plan import Part, Runs
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
            found, mass = _attend_part((q, keys, values), part, plan.text, scale)
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
        grad_q: Tensor | None = None
        of_keys: list[tuple[Tensor, Compact]] = []
        of_values: list[tuple[Tensor, Compact]] = []
        for number, part in enumerate(plan.parts):
            keys, values, *done = saved[4 * number : 4 * number + 4]
            grad_q, *new = _backward_part(grad_q, grad, (q, keys, values), (done[0], done[1]), part, plan.text, scale)
            if part.keys is not None:
                of_keys.append((without_surplus(new[0], part.keys), part.keys))
                of_values.append((without_surplus(new[1], part.keys), part.keys))
        assert grad_q is not None
        if of_keys:
            grad_k, grad_v = placed(key_shape, *of_keys), placed(key_shape, *of_values)
        else:
            grad_k, grad_v = (each.transpose(1, 2) for each in new)
        if plan.own_values and plan.images is not None:
            own = take(upstream, plan.images)
            own = own.unflatten(1, (key_shape[1], -1)).sum(2) if own.shape[1] > key_shape[1] else own
            grad_v = add_at(grad_v, plan.images.flat, without_surplus(own, plan.images))
        found = (placed(shape, (grad_q, plan.text)), grad_k, grad_v)
        if plan.groups is not None:
            _backward_groups(found, upstream, ctx.saved_tensors[ctx.text :], plan.groups, scale)
        return (*(each.transpose(1, 2) for each in found), None, None)


def _attend_part(qkv: Triple, part: Part, queries: Compact, scale: float) -> tuple[Tensor, Tensor]:
    """Results (B, Hq, T, D) and log-sum-exp (B, Hq, T) of one softmax."""
    if not part.inside:
        return attend(qkv, None if part.mask is not None else part.by_query, scale, mask=part.mask)
    operators = _operators()
    assert operators is not None
    q, k, v = qkv
    found = [operators[0](*_of_runs(qkv, some), is_causal=True, scale=scale) for some in part.inside]
    out, mass = (_in_text(each, part.inside, queries) for each in zip(*found, strict=True))
    for batch, pieces in _by_row(part.by_query, len(q)):
        for piece in pieces:
            if piece.first < piece.last:
                stretch, keys = slice(piece.start, piece.stop), slice(piece.first, piece.last)
                far = operators[0](q[batch, :, stretch], k[batch, :, keys], v[batch, :, keys], scale=scale)
                _merge((out[batch, :, stretch], mass[batch, :, stretch]), far)
    return out, mass


def _merge(total: tuple[Tensor, Tensor], more: tuple[Tensor, Tensor]) -> None:
    """Turn results and log-sum-exp of a softmax into those over further keys, too, in place."""
    (out, mass), (far, far_mass) = total, more
    out.lerp_(far, torch.sigmoid(far_mass - mass).to(out.dtype)[..., None])
    torch.logaddexp(mass, far_mass, out=mass)


def _backward_part(
    grad_q: Tensor | None,
    grad: Tensor,
    qkv: Triple,
    done: tuple[Tensor, Tensor],
    part: Part,
    queries: Compact,
    scale: float,
) -> Triple:
    """The queries' gradient added to `grad_q` (B, Hq, T, D) if it is given, and those of keys and values."""
    if part.mask is not None:
        found = _backward(grad, qkv, done, scale, mask=part.mask)
        return found if grad_q is None else (grad_q.add_(found[0]), *found[1:])
    inside = [_backward_runs(grad, qkv, done, some, scale) for some in part.inside]
    if inside:
        own = _in_text([new[0] for new in inside], part.inside, queries)
        grad_q = own if grad_q is None else grad_q.add_(own)
    elif grad_q is None:
        grad_q = _zeros(qkv[0])
    if inside and not part.by_key and part.inside[0].keys is None:
        _, new_k, new_v = inside[0]
        return grad_q, _by_token(new_k, qkv[1]), _by_token(new_v, qkv[2])
    grads = grad_q, _empty(qkv[1]), _empty(qkv[2])
    _write_backward(grads, grad, qkv, done, part.by_key, scale)
    for some, new in zip(part.inside, inside, strict=True):
        for total, one in zip(grads[1:], new[1:], strict=True):
            if some.keys is None:
                total += _by_token(one, total)
            else:
                add_at(total.transpose(1, 2), some.keys, one)
    return grads


def _backward_runs(grad: Tensor, qkv: Triple, done: tuple[Tensor, Tensor], some: Runs, scale: float) -> Triple:
    """Gradients (G, H, M, D) through the pairs inside runs."""
    operators = _operators()
    assert operators is not None
    upstream, out = (_tokens_of(tensor, some.index, some.shape) for tensor in (grad, done[0]))
    mass = _tokens_of(done[1][..., None], some.index, some.shape)[..., 0]
    ends = some.without_surplus(upstream), *_of_runs(qkv, some), out, mass
    found: Triple = operators[1](*ends, 0.0, True, scale=scale)
    return found


def _of_runs(qkv: Triple, some: Runs) -> Triple:
    """Queries, keys and values of runs, (G, H, M, D) each."""
    query, key, value = qkv
    k, v = (_tokens_of(tensor, some.keys, some.shape) for tensor in (key, value))
    return _tokens_of(query, some.index, some.shape), k, v


def _tokens_of(tensor: Tensor, index: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """The tokens of `tensor` (B, H, T, D) at flat positions, or all of them, (G, H, M, D)."""
    if index is None:
        return tensor.unflatten(2, (-1, shape[1])).transpose(1, 2).flatten(0, 1)
    return tokens_at(tensor, index).unflatten(0, shape).transpose(1, 2)


def _by_token(tensor: Tensor, like: Tensor) -> Tensor:
    """All tokens of runs (G, H, M, ...) in their order, (B, H, T, ...)."""
    return tensor.transpose(1, 2).flatten(0, 1).unflatten(0, (len(like), -1)).transpose(1, 2)


def _in_text(found: Sequence[Tensor], runs: tuple[Runs, ...], queries: Compact) -> Tensor:
    """What was found for all runs, (G, H, M, ...) each, at its place in the text, (B, H, T, ...); 0 at its surplus."""
    if runs[0].index is None:
        return _by_token(found[0], queries.index)
    first = found[0]
    make = first.new_empty if queries.full else first.new_zeros
    total = make(queries.index.numel(), first.shape[1], *first.shape[3:])
    for some, new in zip(runs, found, strict=True):
        assert some.index is not None
        tokens = new.transpose(1, 2).flatten(0, 1)
        if some.chosen is None:
            total.index_copy_(0, some.index, tokens)
        else:
            total.index_copy_(0, some.index[some.chosen], tokens[some.chosen])
    return total.unflatten(0, queries.index.shape).transpose(1, 2)


def _zeros(like: Tensor) -> Tensor:
    """Zeros like (B, H, T, D), laid out token by token."""
    return _empty(like).zero_()


def _empty(like: Tensor) -> Tensor:
    """As `_zeros`, with anything in it."""
    return like.new_empty(like.shape[0], like.shape[2], like.shape[1], like.shape[3]).transpose(1, 2)


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
        found = _backward(grad, (q, k, v), side, scale, causal=groups.causal, mask=mask)
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
    scale: float,
    *,
    causal: bool = False,
    mask: Mask | None = None,
) -> Triple:
    """Gradients of what `attend` was given whole; its results in `done` may be those of a softmax over further keys."""
    operators = _operators()
    assert operators is not None
    out, mass = done
    if mask is not None and mask.empty is not None:  # weights of exactly 0 in rows that see nothing
        mass = mass.masked_fill(mask.empty[..., 0], float("inf"))
    bias = None if mask is None else mask.bias
    found: Triple = operators[1](grad, *qkv, out, mass, 0.0, causal, attn_mask=bias, scale=scale)
    return found


def _write_backward(
    grads: Triple, grad: Tensor, qkv: Triple, done: tuple[Tensor, Tensor], rows: Rows, scale: float
) -> None:
    """Through pieces cut by keys, add to the queries' gradient, and write those of keys and values."""
    operators = _operators()
    assert operators is not None
    (q, k, v), (out, mass) = qkv, done
    for batch, pieces in _by_row(rows or [[]], len(q)):
        end = 0
        for piece in pieces:
            queries = batch, slice(None), slice(piece.start, piece.stop)
            keys = batch, slice(None), slice(piece.first, piece.last)
            ends = q[queries], k[keys], v[keys], out[queries], mass[queries]
            new = operators[1](grad[queries], *ends, 0.0, False, scale=scale)
            grads[0][queries] += new[0]
            for total, one in zip(grads[1:], new[1:], strict=True):
                total[batch, :, end : piece.first] = 0.0
                total[keys] = one
            end = piece.last
        for total in grads[1:]:
            total[batch, :, end:] = 0.0


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


def in_groups(tensor: Tensor, groups: Groups) -> Tensor:
    """The tokens of each group of `tensor` (B, H, S, D): (G, H, M, D)."""
    return tokens_at(tensor, groups.index.flatten()).unflatten(0, groups.index.shape).transpose(1, 2)

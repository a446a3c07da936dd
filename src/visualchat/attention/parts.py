"""Attention over parts of the keys, and their results brought together; few calls, gradients written in place.

The queries of text attend to text (a causal part) and to the images before them (mask-free parts); images that see more
than themselves attend in groups, with their labels. Under split softmax the results of the two sides are added. Under
one softmax they are weighted by their log-sum-exp, which gives exactly what one softmax over all keys gives; the
gradient of each part is exact if its backward pass is given the merged result and log-sum-exp, as in ring attention
(arXiv 2310.01889). torch's fused kernel for CPUs returns and takes it.

Shapes: B batch, Hq query heads, Hkv key heads, S sequence, D head size; T compacted text, I compacted images; G groups,
M tokens of the largest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from visualchat.attention.sdpa_plan import Compact, Groups, Mask, Piece, Plan, Rows

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
        q, k, v = (take(tensor, plan.text) for tensor in (query, key, value))
        kept = [q, k, v]
        side, mass = attend((q, k, v), plan.segments, scale, causal=True)
        done = [side, mass]
        if plan.images is not None:
            keys, values = (take(tensor, plan.images) for tensor in (key, value))
            kept += [keys, values]
            other, other_mass = attend((q, keys, values), plan.views, scale, mask=plan.view_mask)
            if plan.merged:
                total = torch.logaddexp(mass, other_mass)
                side = side * (mass - total).exp().to(side.dtype)[..., None]
                side = side.addcmul_(other, (other_mass - total).exp().to(side.dtype)[..., None])
                done = [side, total]
            else:
                side, done = side + other, [side, mass, other, other_mass]
        if not plan.all_count:
            side = side.masked_fill(~plan.result[:, None, :, None], 0.0)
        parts = [(side, plan.text)]
        if plan.own_values and plan.images is not None:
            groups = query.shape[1] // value.shape[1]
            values = values if groups == 1 else values.repeat_interleave(groups, dim=1)
            parts.append((without_surplus(values, plan.images), plan.images))
        out = placed(query.shape, *parts)
        inside: list[Tensor] = []
        if plan.groups is not None:
            inside = add_groups(out, (query, key, value), plan.groups, scale)
        ctx.save_for_backward(*kept, *done, *inside)
        ctx.plan, ctx.scale, ctx.shapes, ctx.text = plan, scale, (query.shape, key.shape), len(kept) + len(done)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan, scale = ctx.plan, ctx.scale
        q, k, v, *saved = ctx.saved_tensors[: ctx.text]
        upstream = grads[0].transpose(1, 2)  # (B, Hq, S, D)
        grad = take(upstream, plan.text)
        if not plan.all_count:
            grad = grad.masked_fill(~plan.result[:, None, :, None], 0.0)
        done = saved if plan.images is None else saved[2:]
        grad_q, text_k, text_v = _backward(grad, (q, k, v), (done[0], done[1]), plan.segments, scale, causal=True)
        of_keys, of_values = [(text_k, plan.text)], [(text_v, plan.text)]
        if plan.images is not None:
            ends, other = (q, saved[0], saved[1]), (done[-2], done[-1])
            more, image_k, image_v = _backward(grad, ends, other, plan.views, scale, mask=plan.view_mask)
            grad_q = grad_q.add_(more)
            if plan.own_values:
                own = take(upstream, plan.images)
                own = own.unflatten(1, (image_v.shape[1], -1)).sum(2) if own.shape[1] > image_v.shape[1] else own
                image_v = image_v.add_(without_surplus(own, plan.images))
            of_keys.append((image_k, plan.images))
            of_values.append((image_v, plan.images))
        shape, key_shape = ctx.shapes
        found = (
            placed(shape, (grad_q, plan.text)),
            placed(key_shape, *of_keys),
            placed(key_shape, *of_values),
        )
        if plan.groups is not None:
            _backward_groups(found, upstream, ctx.saved_tensors[ctx.text :], plan.groups, scale)
        return (*(each.transpose(1, 2) for each in found), None, None)


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
    grads = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for batch, pieces in _by_row(rows, len(q)):
        for piece in pieces:
            if piece.first < piece.last:
                queries = batch, slice(None), slice(piece.start, piece.stop)
                keys = batch, slice(None), slice(piece.first, piece.last)
                ends = q[queries], k[keys], v[keys], out[queries], mass[queries]
                new = operators[1](grad[queries], *ends, 0.0, causal, scale=scale)
                for total, place, part in zip(grads, (queries, keys, keys), new, strict=True):
                    total[place] += part
    return grads


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

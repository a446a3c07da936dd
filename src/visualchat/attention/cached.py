"""Several queries on top of a cache, without masks: later rounds, prompts in chunks, text around images put in before.

The new tokens attend among themselves as in a prompt of their own (`sdpa_plan.make_plan`). What stands in the cache is
text and images, each together: new text sees a leading stretch of each. Parts of one softmax are brought together by
their log-sum-exp, as in `parts`. No gradient flows through it.

Shapes: B batch, Hq query heads, Hkv key heads, Q new tokens, C cached ones, K = C + Q, D head size; T compacted text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visualchat.attention.compact import Compact, Piece, Rows, placed, take, without_surplus
from visualchat.attention.kinds import AttentionKind, Modality
from visualchat.attention.layout import Layout
from visualchat.attention.parts import add_groups, attend
from visualchat.attention.sdpa_plan import Plan, make_plan, runs

Part = tuple[Tensor, Tensor]
"""Results (B, Hq, T, D) and log-sum-exp (B, Hq, T)."""


@dataclass(frozen=True)
class CachedPlan:
    """What queries on top of a cache see, without a mask.

    Attributes:
        new: The new tokens among themselves.
        text: Stretches of their text on stretches of the cache, of the softmax over text, or of the only one.
        images: The same of the softmax over images.
        joint: Whether there is one softmax only.
    """

    new: Plan
    text: tuple[Rows, ...]
    images: tuple[Rows, ...]
    joint: bool


@torch.compiler.disable
def make_cached_plan(kind: AttentionKind, layout: Layout, dtype: torch.dtype) -> CachedPlan | None:
    """The plan of queries on top of a cache, of a kind for which there is a `Plan`; None where they need masks.

    They do where the cache holds text and images in turn under two softmaxes, gaps, or the beginning of a unit that
    ends among the new tokens.
    """
    start = layout.offset
    if layout.segment_ids is not None or _unit_goes_on(kind, layout):
        return None
    own = (None if ids is None else ids[:, start:] for ids in layout.tensors[1:4])
    new = make_plan(kind, Layout(layout.queries, layout.modality[:, start:], *own), dtype, apart=True)
    place = None if layout.key_order is None else layout.key_order.split([start, layout.queries], 1)
    if place is not None and (place[1].diff(dim=1) <= 0).any():
        return None
    joint = kind.softmax == "joint"
    if joint and (found := _stretches(layout.real()[:, :start], place, new.text)) is not None:
        return CachedPlan(new, found, (), joint)
    text, images = (_stretches(layout.of(m)[:, :start], place, new.text) for m in (Modality.TEXT, Modality.IMAGE))
    if text is None or images is None:
        return None
    return CachedPlan(new, text, images, joint)


def _unit_goes_on(kind: AttentionKind, layout: Layout) -> bool:
    """Whether new tokens belong to an image or unit that is in the cache already; numbers rise."""
    ids = layout.unit_ids if kind.uses_units else layout.image_ids if kind.uses_images else None
    if ids is None:
        return False
    ids = ids.masked_fill(~layout.real(), -1)
    new = ids[:, layout.offset :]
    first = new.masked_fill(new < 0, torch.iinfo(ids.dtype).max).amin(1)
    return bool((first <= ids[:, : layout.offset].amax(1)).any())


def _stretches(chosen: Tensor, place: tuple[Tensor, ...] | None, text: Compact) -> tuple[Rows, ...] | None:
    """The stretches of chosen keys that each stretch of text sees; none if no key is chosen.

    Args:
        chosen: (B, C) bool.
        place: Where in the conversation cached (B, C) and new tokens (B, Q) stand; None where all new ones come later.
        text: Of the new tokens.

    Returns:
        None if the chosen keys do not stand together in their order.
    """
    if not chosen.any():
        return ()
    counts, here = chosen.sum(1, keepdim=True), torch.arange(chosen.shape[1], device=chosen.device)
    first = chosen.to(torch.uint8).argmax(1, keepdim=True)
    if not torch.equal(chosen, (here >= first) & (here < first + counts)):
        return None
    if place is None:
        spans = torch.cat([text.valid.sum(1, keepdim=True), first, first + counts], 1).tolist()
        rows = [[Piece(0, *span)] if span[0] else [] for span in spans]  # a row may bring no text
        return (rows[:1] if all(row == rows[0] for row in rows) else rows,)
    far = torch.iinfo(torch.long).max
    cached = place[0].masked_fill(here < first, -1).masked_fill(here >= first + counts, far)
    if (cached.diff(dim=1) < 0).any():
        return None
    last = torch.searchsorted(cached, place[1].gather(1, text.index).contiguous())
    return (runs(first.expand_as(last), last, text.valid),)


def attend_cached(query: Tensor, key: Tensor, value: Tensor, plan: CachedPlan, scale: float) -> Tensor:
    """The results of the new tokens.

    Args:
        query: (B, Hq, Q, D).
        key: (B, Hkv, K, D).
        value: (B, Hkv, K, D).
        plan: Of their layout.
        scale: Factor on the scores.

    Returns:
        (B, Q, Hq, D), 0 at padding.
    """
    new, start = plan.new, key.shape[2] - query.shape[2]
    before, own = (key[:, :, :start], value[:, :, :start]), (key[:, :, start:], value[:, :, start:])
    q = take(query, new.text)
    of_text: list[Part] = []
    of_images: list[Part] = []
    if new.text.length:
        of_text = [attend((q, take(own[0], new.text), take(own[1], new.text)), None, scale, causal=True)]
        of_text += [attend((q, *before), rows, scale) for rows in plan.text]
        of_images = [attend((q, *before), rows, scale) for rows in plan.images]
    if new.images is not None:
        image_key, image_value = (take(each, new.images) for each in own)
        if new.text.length:
            of_images.append(attend((q, image_key, image_value), new.views, scale, mask=new.view_mask))
    sides = [of_text + of_images] if plan.joint else [of_text, of_images]
    found = [_merged(parts) for parts in sides if parts]
    side = torch.stack(found).sum(0) if found else q
    if not new.all_count:
        side = side.masked_fill(~new.result[:, None, :, None], 0.0)
    parts = [(side, new.text)]
    if new.own_values and new.images is not None:
        groups = query.shape[1] // value.shape[1]
        image_value = image_value if groups == 1 else image_value.repeat_interleave(groups, dim=1)
        parts.append((without_surplus(image_value, new.images), new.images))
    out = placed(query.shape, *parts)
    if new.groups is not None:
        add_groups(out, (query, *own), new.groups, scale)
    return out


def _merged(parts: list[Part]) -> Tensor:
    """What one softmax over the keys of all parts gives, (B, Hq, T, D); 0 where there is no key."""
    if len(parts) == 1:
        return parts[0][0]
    weights = torch.stack([mass for _, mass in parts]).softmax(0).nan_to_num(0.0)
    total = torch.zeros_like(parts[0][0])
    for (out, _), weight in zip(parts, weights, strict=True):
        total.addcmul_(out, weight.to(out.dtype)[..., None])
    return total

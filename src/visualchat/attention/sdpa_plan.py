"""How `sdpa.py` cuts a batch into mask-free pieces; computed once a forward pass and shared by all layers.

Shapes: B batch, S sequence, T text tokens of the longest row (compacted), I image tokens likewise, R real tokens
likewise, G groups (images or units), M tokens of the largest group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visualchat.attention.compact import Compact, Mask, Piece, Rows, compact
from visualchat.attention.kinds import AttentionKind, Modality
from visualchat.attention.layout import Layout, visible
from visualchat.attention.parts_plan import Part, image_part, text_part

MASKED_SIDE = 1 << 16
"""Up to this many query-key pairs a row, one call under a mask beats many mask-free ones."""


READ_TWICE = 1.25
"""Beyond so many keys read for each key, one query's two softmaxes share the scores of all keys."""


@dataclass(frozen=True)
class Groups:
    """Tokens that attend among themselves.

    Attributes:
        index: (G, M) flat positions in B × S; beyond a group's own size they point anywhere.
        valid: (G, M) bool, False at that surplus, which stands at the end.
        full: Whether there is no surplus.
        masks: (G, 1, M, M) each, of the softmaxes that are added; None for one that is plain causal attention.
    """

    index: Tensor
    valid: Tensor
    full: bool
    masks: tuple[Mask | None, ...]

    @property
    def causal(self) -> bool:
        """Whether each token sees what stands before it in its group, and itself."""
        return self.masks == (None,)

    def without_surplus(self, tensor: Tensor) -> Tensor:
        """`tensor` (G, H, M, D), 0 at the surplus."""
        return tensor if self.full else tensor.masked_fill(~self.valid[:, None, :, None], 0.0)


@dataclass(frozen=True)
class Plan:
    """All that attention needs to know of a batch beyond queries, keys and values.

    Attributes:
        image: (B, S) bool, True at real image tokens.
        text: The text that is both query and key; all real tokens where one softmax runs over them in one call.
        result: (B, C) bool, which results of those queries count: those of text outside labels.
        all_count: Whether all of them do.
        segments: Each packed dialogue's stretch of `text` as a piece on itself; None where a row is one dialogue.
        images: The image keys; None where there are none, or `text` holds them.
        views: The images' stretches that each stretch of text sees; None where a mask serves better.
        view_mask: That mask, (B, 1, T, I); None where pieces serve better.
        groups: Images or units that attend among themselves; None where there are none.
        parts: The softmaxes in calls without masks; None where one call serves, or the operators for parts are missing.
        own_values: Whether an image token's result is its own value.
    """

    image: Tensor
    text: Compact
    result: Tensor
    all_count: bool
    segments: Rows | None
    images: Compact | None
    views: Rows | None
    view_mask: Mask | None
    groups: Groups | None
    parts: tuple[Part, ...] | None
    own_values: bool


@dataclass(frozen=True)
class Side:
    """One softmax of queries on top of a cache: over keys [first, last), under a mask unless all of them are seen."""

    first: int
    last: int
    mask: Mask | None

    @classmethod
    def of(cls, seen: Tensor, dtype: torch.dtype) -> Side | None:
        """From which keys each query sees, (B, Q, K) bool; None where no query sees any."""
        columns = seen.flatten(0, 1).any(0).nonzero().squeeze(1)
        if not len(columns):
            return None
        first, last = int(columns[0]), int(columns[-1]) + 1
        seen = seen[:, :, first:last]
        return cls(first, last, None if seen.all() else Mask.of(seen, dtype))


@dataclass(frozen=True)
class Sides:
    """The softmaxes that are added, of queries on top of a cache.

    Attributes:
        apart: Each as an attention of its own. A cache that holds all images first and the text behind them
            (`visualchat.model.images_first`) lets each side take its own stretch.
        stacked: For one query whose sides would read most keys twice, both as one tensor (B, 1, 1, sides, K) that is
            added to the scores, and where a side is empty (B, 1, 1, sides, 1), if it is anywhere; None otherwise.
    """

    apart: tuple[Side, ...]
    stacked: tuple[Tensor, Tensor | None] | None


@torch.compiler.disable
def make_sides(kind: AttentionKind, layout: Layout, dtype: torch.dtype) -> Sides:
    """What queries on top of a cache see, or those of a kind without a form of its own; memory grows with Q × K."""
    seen = visible(kind, layout)
    parts = [seen]
    if kind.softmax == "split":
        image = (layout.modality == Modality.IMAGE)[:, None, :]
        parts = [part for part in (seen & ~image, seen & image) if part.any()]
    apart = tuple(side for part in parts if (side := Side.of(part, dtype)) is not None)
    read = sum(side.last - side.first for side in apart)
    if layout.queries > 1 or len(apart) < 2 or read <= READ_TWICE * layout.modality.shape[1]:
        return Sides(apart, None)
    masks = [Mask.of(part, dtype) for part in parts]
    bias = torch.stack([mask.bias for mask in masks], dim=-2)
    empty = torch.stack([~part.any(-1, keepdim=True)[:, None] for part in parts], dim=-2)
    return Sides(apart, (bias, empty if empty.any() else None))


@torch.compiler.disable
def make_plan(
    kind: AttentionKind, layout: Layout, dtype: torch.dtype, mergeable: bool = False, apart: bool = False
) -> Plan:
    """Cut a batch whose queries are its keys; not for image context `text`, and `all` with joint softmax only.

    Args:
        kind: Of attention.
        layout: What the tokens are.
        dtype: The queries'.
        mergeable: Whether softmaxes can be computed in parts; one is where that saves more than it costs.
        apart: Whether text and images are to be apart under one softmax, too.
    """
    image, segment = layout.of(Modality.IMAGE), layout.segment_ids
    joint = kind.softmax == "joint" and not (apart and kind.image_context != "all")
    among_all = _among_all(kind, layout, image) if mergeable and joint else None
    if among_all is not None:
        text, stretches = among_all
    else:
        text = compact(layout.real() if joint else layout.of(Modality.TEXT))
    result = text.valid
    if joint and among_all is None and kind.image_context != "all":
        result = result & ~image.gather(1, text.index)
    if kind.uses_units:
        result = result & ~layout.in_label().gather(1, text.index)
    images = views = view_mask = None
    if (not joint or (among_all is not None and kind.image_context == "self")) and image.any():
        images = compact(image)
    if images is not None and not joint:
        view_mask, views = _views(text, images, segment, dtype)
    segments = None if segment is None else _segments(text, segment)
    parts: tuple[Part, ...] | None = None
    if among_all is not None:
        parts = (text_part(stretches, text, None, image.shape[1]),)
    elif mergeable and not joint and text.length:
        parts = (text_part(_whole(text) if segments is None else _from_starts(segments), text, text, text.length),)
        parts += () if images is None else (image_part(images, views, view_mask),)
    return Plan(
        image=image,
        text=text,
        result=result,
        all_count=bool(result.all()),
        segments=segments,
        images=images,
        views=views,
        view_mask=view_mask,
        groups=_groups(kind, layout, dtype) if kind.image_context in ("image", "label", "unit") else None,
        parts=parts,
        own_values=kind.image_context == "self",
    )


def _among_all(kind: AttentionKind, layout: Layout, image: Tensor) -> tuple[Compact, Rows] | None:
    """Text that attends to all before it, and its runs as `text_part` takes them; None where one call serves better.

    That is where a row's text and images, or its packed dialogues, make few pairs; or where what stands before a token
    is not all real.
    """
    real = asked = layout.real()
    if kind.image_context == "all":
        pairs = 0 if layout.segment_ids is None else image.shape[1] ** 2
    else:
        asked = layout.of(Modality.TEXT)
        pairs = int(image.sum(1).max() * asked.sum(1).max())
        asked = asked & ~layout.in_label() if kind.uses_units else asked
    if pairs <= MASKED_SIDE or not asked.any():
        return None
    text = compact(asked)
    begin = real.to(torch.uint8).argmax(1, keepdim=True).expand_as(text.index)
    new = torch.ones_like(text.valid)
    new[:, 1:] = text.index.diff(dim=1) != 1
    if layout.segment_ids is not None:
        begin = _first_positions(layout.segment_ids).gather(1, text.index)
        new[:, 1:] |= begin[:, 1:] != begin[:, :-1]
    before = real.long().cumsum(1) - real.long()
    gaps = (text.index - begin) != before.gather(1, text.index) - before.gather(1, begin)
    if (gaps & text.valid).any():
        return None
    return text, runs(begin, (text.index * new).cummax(1).values, text.valid)


def _whole(text: Compact) -> Rows:
    """Each row's text as one run."""
    counts = text.valid.sum(1).tolist()
    rows = [[Piece(0, count, 0, 0)] if count else [] for count in counts]
    return rows[:1] if min(counts) == max(counts) else rows


def _from_starts(segments: Rows) -> Rows:
    """Packed dialogues' text as runs: each sees nothing before its first token."""
    return [[Piece(p.start, p.stop, p.first, p.first) for p in row] for row in segments]


def _views(
    text: Compact, images: Compact, segment: Tensor | None, dtype: torch.dtype
) -> tuple[Mask | None, Rows | None]:
    """The images before each text token: a mask (B, T, I) where it is small, else stretches of text and of images."""
    if text.length * images.length <= MASKED_SIDE:
        mask = (images.index[:, None, :] < text.index[:, :, None]) & images.valid[:, None, :]
        if segment is not None:
            own, seen = segment.gather(1, text.index), segment.gather(1, images.index)
            mask = mask & (own[:, :, None] == seen[:, None, :])
        return Mask.of(mask, dtype), None
    far = torch.iinfo(torch.long).max
    image_position = images.index.masked_fill(~images.valid, far)
    last = torch.searchsorted(image_position, text.index.contiguous())
    first = torch.zeros_like(last)
    if segment is not None:  # segments are contiguous: one's images begin where the images before its first token end
        begin = _first_positions(segment).gather(1, text.index)
        first = torch.searchsorted(image_position, begin)
    return None, runs(first, last, text.valid)


def _first_positions(segment: Tensor) -> Tensor:
    """(B, S): where the segment of each token begins."""
    position = torch.arange(segment.shape[1], device=segment.device).expand_as(segment)
    begins = torch.ones_like(segment, dtype=torch.bool)
    begins[:, 1:] = segment[:, 1:] != segment[:, :-1]
    return (position * begins).cummax(1).values


def _segments(text: Compact, segment: Tensor) -> Rows:
    """The packed dialogues' stretches of the compacted text."""
    ids = _first_positions(segment).gather(1, text.index)
    rows = runs(ids, ids, text.valid)
    return [[Piece(p.start, p.stop, p.start, p.stop) for p in row] for row in rows]


def runs(first: Tensor, last: Tensor, valid: Tensor) -> Rows:
    """Stretches of equal (first, last) in each row of (B, T), as pieces; surplus is left out."""
    rows: Rows = []
    length = valid.sum(1).tolist()
    changed = torch.ones_like(valid)
    changed[:, 1:] = (first[:, 1:] != first[:, :-1]) | (last[:, 1:] != last[:, :-1])
    row_of, start_of = (changed & valid).nonzero().unbind(1)
    starts = torch.stack([row_of, start_of, first[row_of, start_of], last[row_of, start_of]], 1).tolist()
    for row in range(len(valid)):
        own = [s[1:] for s in starts if s[0] == row]
        ends = [s[0] for s in own[1:]] + [length[row]] * bool(own)  # a row may hold no text at all
        rows.append([Piece(s, e, a, b) for (s, a, b), e in zip(own, ends, strict=True)])
    return rows[:1] if all(row == rows[0] for row in rows) else rows


def _groups(kind: AttentionKind, layout: Layout, dtype: torch.dtype) -> Groups | None:
    """Images (context `image`) or units with the masks of the text and the image side among their own tokens."""
    ids = layout.unit_ids if kind.uses_units else layout.image_ids
    assert ids is not None
    inside = layout.real() & (ids >= 0)
    if kind.image_context == "image":
        inside = inside & (layout.modality == Modality.IMAGE)
    flat = inside.flatten().nonzero().squeeze(1)
    if not len(flat):
        return None
    rows = flat // ids.shape[1]
    name = ids.flatten()[flat] + rows * (int(ids.max()) + 1)
    if layout.segment_ids is not None:
        segments = layout.segment_ids.flatten()[flat]
        name = name * (int(segments.max()) + 1) + segments
    order = name.argsort(stable=True)
    counts = torch.unique_consecutive(name[order], return_counts=True)[1]
    largest = int(counts.max())
    slot = torch.arange(largest, device=ids.device)
    valid = slot[None] < counts[:, None]
    start = counts.cumsum(0) - counts
    index = flat[order][(start[:, None] + slot[None]).clamp(max=len(flat) - 1)]
    full = bool(valid.all())
    if kind.image_context == "unit" and kind.softmax == "joint":
        return Groups(index, valid, full, (None,))
    text = (layout.modality.flatten()[index] == Modality.TEXT)[:, None, :]
    both = valid[:, :, None] & valid[:, None, :]
    before, itself = slot[None, :] <= slot[:, None], slot[None, :] == slot[:, None]
    own_images = {"image": torch.ones_like(before), "label": itself, "unit": before}[kind.image_context]
    seen_text, seen_images = both & before & text, both & own_images & ~text
    sides = (seen_text | seen_images,) if kind.softmax == "joint" else (seen_text, seen_images)
    return Groups(index, valid, full, tuple(Mask.of(side, dtype) for side in sides))

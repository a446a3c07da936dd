"""What the tokens of a batch are, and which of them see which: the family's masks, defined once.

Rows are queries, columns keys, of "Image 1: <image> What?" as L (its label), two image tokens I, and text T, by image
context (T attends by the text softmax, I by the image softmax of `split`; `joint` has one softmax over both):

             self        image       label       unit        text        all
             L I I T     L I I T     L I I T     L I I T     L I I T     L I I T
        L    T . . .     T . . .     T . . .     T . . .     T . . .     T . . .
        I    . I . .     . I I .     T I . .     T I . .     T I . .     T I . .
        I    . . I .     . I I .     T . I .     T I I .     T . I .     T I I .
        T    T I I T     T I I T     T I I T     T I I T     T I I T     T I I T

They differ from each other where there are several images: `text` sees all earlier text, `label` its own label only;
`all` sees earlier images too, `unit` only its own. Shapes: B batch, Q queries, K keys. Masks: True = attend.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from visualchat.attention.kinds import AttentionKind, Modality


@dataclass(frozen=True)
class Layout:
    """What the K keys of each row are; the queries are the last `queries` of them.

    Attributes:
        queries: Q.
        modality: (B, K), a `Modality` each.
        padding: (B, K) bool, True at real tokens; None where all are.
        image_ids: (B, K), which image a token belongs to, negative for none; None if unused.
        unit_ids: (B, K), which label and image belong together, negative for neither; None if unused.
        segment_ids: (B, K), which packed dialogue a token belongs to; None where a row is one dialogue.
        key_order: (B, K), where in the conversation each token stands; None where keys stand in that order.
        plans: What was computed from it (`plan_cache.py`).
    """

    queries: int
    modality: Tensor
    padding: Tensor | None = None
    image_ids: Tensor | None = None
    unit_ids: Tensor | None = None
    segment_ids: Tensor | None = None
    key_order: Tensor | None = None
    plans: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False, kw_only=True)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.modality, self.padding, self.image_ids, self.unit_ids, self.segment_ids, self.key_order

    @property
    def offset(self) -> int:
        """The position of the first query."""
        return self.modality.shape[1] - self.queries

    def real(self) -> Tensor:
        """(B, K) bool, True at tokens that are no padding."""
        return torch.ones_like(self.modality, dtype=torch.bool) if self.padding is None else self.padding

    def of(self, modality: Modality) -> Tensor:
        """(B, K) bool, True at real tokens of one modality."""
        chosen = self.modality == modality
        return chosen if self.padding is None else chosen & self.padding

    def in_label(self) -> Tensor:
        """(B, K) bool, True at real tokens of a label: text that belongs to a unit."""
        assert self.unit_ids is not None
        return self.of(Modality.TEXT) & (self.unit_ids >= 0)


def visible(kind: AttentionKind, layout: Layout) -> Tensor:
    """Which keys each query sees, (B, Q, K) bool."""
    query = slice(layout.offset, None)
    position = layout.key_order
    if position is None:
        position = torch.arange(layout.modality.shape[1], device=layout.modality.device)[None]
    before = position[:, None, :] <= position[:, query, None]
    itself = position[:, None, :] == position[:, query, None]
    text_key = (layout.modality == Modality.TEXT)[:, None, :]

    def same(ids: Tensor) -> Tensor:
        return (ids[:, query, None] == ids[:, None, :]) & (ids >= 0)[:, None, :]

    by_text = before
    match kind.image_context:
        case "self":
            by_image = itself
        case "text":
            by_image = itself | (before & text_key)
        case "all":
            by_image = before
        case "image":
            assert layout.image_ids is not None
            by_image = itself | (same(layout.image_ids) & ~text_key)
        case "label" | "unit":
            assert layout.unit_ids is not None
            own = same(layout.unit_ids) & before
            by_image = own if kind.image_context == "unit" else itself | (own & text_key)
            by_text = torch.where(layout.in_label()[:, query, None], own & text_key, before)
    seen = torch.where((layout.modality == Modality.IMAGE)[:, query, None], by_image, by_text)
    if layout.padding is not None:
        seen = seen & layout.padding[:, None, :]
    if layout.segment_ids is not None:
        seen = seen & (layout.segment_ids[:, query, None] == layout.segment_ids[:, None, :])
    return seen

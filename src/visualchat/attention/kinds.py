"""The attention family: what a token may see, and how it weighs it.

Two axes span the family; a named kind is a point on them. Source of `mmca`: arXiv 2309.14327, section 4.1 and figure 4.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, get_args

ImageContext = Literal["self", "image", "label", "unit", "text", "all"]
Softmax = Literal["joint", "split"]


class Modality(IntEnum):
    """What a token is, in the ids that Hugging Face calls `mm_token_type_ids`."""

    TEXT = 0
    IMAGE = 1


@dataclass(frozen=True)
class AttentionKind:
    """A point of the family.

    Attributes:
        image_context: What an image token sees:
            `self` itself alone, so that its output is its own value;
            `image` its own image, in both directions;
            `label` its own label ("### Image k:") and itself;
            `unit` its own label and its own image so far;
            `text` earlier text and itself;
            `all` everything before it and itself.
            Under `label` and `unit` a label's tokens see the label alone, so that label and image form a unit which
            depends on nothing outside it. All other text sees everything before it and itself.
        softmax: How a token weighs what it sees: `joint` (one softmax) or `split` (one over text plus one over images,
            `softmax(QK'·M1)V + softmax(QK'·M2)V`; an empty side adds exactly 0).

    Raises:
        ValueError: A name is unknown.
    """

    image_context: ImageContext
    softmax: Softmax

    def __post_init__(self) -> None:
        for name, value, known in (
            ("image_context", self.image_context, get_args(ImageContext)),
            ("softmax", self.softmax, get_args(Softmax)),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}, expected one of {', '.join(known)}")

    @property
    def uses_units(self) -> bool:
        """Whether tokens must be told which label and image belong together."""
        return self.image_context in ("label", "unit")

    @property
    def uses_images(self) -> bool:
        """Whether tokens must be told which image they belong to."""
        return self.image_context == "image"


KINDS: dict[str, AttentionKind] = {
    "causal": AttentionKind("all", "joint"),
    "mmca": AttentionKind("self", "split"),
    "mmca_joint": AttentionKind("self", "joint"),
    "unit": AttentionKind("unit", "joint"),
    "unit_split": AttentionKind("unit", "split"),
    "label": AttentionKind("label", "joint"),
    "image": AttentionKind("image", "joint"),
    "mmca_reference": AttentionKind("text", "split"),
}
"""`mmca` is the paper's; `mmca_reference` is what the published code computes, without its leak of later images."""


@dataclass(frozen=True)
class EarlyLayers:
    """The first layers of a model, where they attend by a kind of their own.

    Attributes:
        kind: A name in `KINDS`.
        count: How many layers.
    """

    kind: str
    count: int


def attention_kind(kind: str | tuple[ImageContext, Softmax] | AttentionKind) -> AttentionKind:
    """The kind of that name, or at that point of the two axes.

    Raises:
        ValueError: There is none.
    """
    if isinstance(kind, AttentionKind):
        return kind
    if isinstance(kind, tuple):
        return AttentionKind(*kind)
    check_name(kind, KINDS)
    return KINDS[kind]


def check_name(kind: str, known: Iterable[str]) -> None:
    """Raise a ValueError that names the nearest of the known kinds, unless the kind is one of them."""
    known = [*known]
    if kind in known:
        return
    near = difflib.get_close_matches(kind.lower(), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"unknown attention kind {kind!r}, expected one of {', '.join(known)}{hint}")

"""The attention family: what a token may see, and how it weighs it.

Two axes span the family; a named kind is a point on them. Source of `mmca`: arXiv 2309.14327, section 4.1 and figure 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal


class Modality(IntEnum):
    """What a token is, in the ids that Hugging Face calls `mm_token_type_ids`."""

    TEXT = 0
    IMAGE = 1


@dataclass(frozen=True)
class AttentionKind:
    """A point of the family.

    Attributes:
        image_context: What an image token sees: `self` (only itself, so its output is its own value) or `all`
            (everything before it).
        softmax: How a text token weighs the earlier tokens it sees: `joint` (one softmax over all) or `split` (one over
            text plus one over images, `softmax(QK'·M1)V + softmax(QK'·M2)V`; an empty side adds exactly 0).
    """

    image_context: Literal["self", "all"]
    softmax: Literal["joint", "split"]


KINDS: dict[str, AttentionKind] = {
    "causal": AttentionKind("all", "joint"),
    "mmca": AttentionKind("self", "split"),
}


def attention_kind(name: str) -> AttentionKind:
    """The kind called `name`.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in KINDS:
        raise ValueError(f"unknown attention kind {name!r}, expected one of {', '.join(KINDS)}")
    return KINDS[name]

"""Chosen tokens of each row moved together, stretches of them, and masks as fused kernels take them.

Shapes: B batch, S sequence, C chosen tokens of the longest row, Q queries, K keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Compact:
    """The chosen tokens of each row, moved together.

    Attributes:
        index: (B, C) positions; beyond a row's own count they point at tokens that were not chosen.
        flat: (B · C) the same in B × S flattened.
        valid: (B, C) bool, False at that surplus.
        everything: Whether all tokens are chosen, so that nothing moves.
        full: Whether there is no surplus.
    """

    index: Tensor
    flat: Tensor
    valid: Tensor
    everything: bool
    full: bool

    @property
    def length(self) -> int:
        return self.index.shape[1]


def compact(chosen: Tensor) -> Compact:
    """Move the True entries (B, S) of each row together, in order."""
    counts = chosen.sum(1)
    fewest, most = torch.stack([counts.min(), counts.max()]).tolist()
    index = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    row = torch.arange(len(chosen), device=chosen.device)[:, None]
    valid = torch.arange(most, device=chosen.device)[None] < counts[:, None]
    flat = (index + row * chosen.shape[1]).flatten()
    return Compact(index, flat, valid, everything=fewest == chosen.shape[1], full=fewest == most)


@dataclass(frozen=True)
class Mask:
    """A mask in the form that torch's fused attention takes as it is: added to the scores, and no query sees nothing.

    Attributes:
        bias: (B, 1, Q, K) in the queries' dtype, 0 where a query sees a key, else -inf; all 0 where it sees nothing.
        empty: (B, 1, Q, 1) bool, True at queries that see nothing, whose result must be 0; None where all see some key.
    """

    bias: Tensor
    empty: Tensor | None

    @classmethod
    def of(cls, seen: Tensor, dtype: torch.dtype) -> Mask:
        """From which keys each query sees, (B, Q, K) bool."""
        empty = ~seen.any(-1, keepdim=True)
        hidden = ~(seen | empty)[:, None]
        bias = torch.zeros(hidden.shape, dtype=dtype, device=seen.device).masked_fill_(hidden, float("-inf"))
        return cls(bias, empty[:, None] if empty.any() else None)


@dataclass(frozen=True)
class Piece:
    """Queries [start, stop) of a compacted row that all see keys [first, last) of a compacted row."""

    start: int
    stop: int
    first: int
    last: int


Rows = list[list[Piece]]
"""The pieces of each row, in order; one list stands for all rows where they agree."""

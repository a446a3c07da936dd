"""Chosen tokens of each row moved together and back, stretches of them, and masks as fused kernels take them.

Shapes: B batch, H heads, S sequence, D head size, C chosen tokens of the longest row, Q queries, K keys.
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


def take(tensor: Tensor, chosen: Compact) -> Tensor:
    """The chosen tokens of `tensor` (B, H, S, D): (B, H, C, D).

    Whole tokens are copied, (H, D) at once: many times faster on a CPU than `gather`, also where it must lay the
    tensor out again first (transformers' models lay it out like this).
    """
    if chosen.everything:
        return tensor
    return tokens_at(tensor, chosen.flat).unflatten(0, (len(tensor), -1)).transpose(1, 2)


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

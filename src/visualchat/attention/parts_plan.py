"""How `parts.py` computes a softmax in calls without masks: runs of text over the keys before them, and themselves.

A run is text that nothing of another kind interrupts. It attends without a mask to all that stands before it, and
runs of about one length attend causally to themselves in one call. Backward, the same pairs are cut by keys: then the
gradient of a key is written once, and few long calls of the kernel are faster than many short ones.

Shapes: B batch, S sequence, T compacted queries; G runs, M tokens of the longest.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from visualchat.attention.compact import Compact, Mask, Piece, Rows

ALIKE = 64
"""Runs whose lengths differ by less are one call."""


@dataclass(frozen=True)
class Runs:
    """Runs of about one length, each causal attention of its own.

    Attributes:
        index: (G · M) flat positions in B × T; beyond a run's length its last token's; None where the runs are
            the whole text, in its order.
        keys: (G · M) the same tokens among the keys, flat; None likewise.
        shape: G and M.
        chosen: Which entries of `index` are within their run, flat; None where all are.
    """

    index: Tensor | None
    keys: Tensor | None
    shape: tuple[int, int]
    chosen: Tensor | None

    def without_surplus(self, tensor: Tensor) -> Tensor:
        """`tensor` (G, H, M, ...), 0 beyond each run's length."""
        if self.chosen is None:
            return tensor
        surplus = torch.ones(self.shape, dtype=torch.bool, device=tensor.device)
        surplus.view(-1)[self.chosen] = False
        return tensor.masked_fill(surplus[:, None, :, None], 0.0)


@dataclass(frozen=True)
class Part:
    """One softmax, or one of two that are added.

    Attributes:
        keys: The keys among all; None where they are all.
        by_query: Stretches of queries, each over all keys that it sees but those of its own run; none where no query
            sees others.
        by_key: The same pairs as stretches of keys, each with all queries that see it.
        inside: The runs, where the keys hold them.
        mask: Instead of stretches, where a mask serves better.
    """

    keys: Compact | None
    by_query: Rows
    by_key: Rows
    inside: tuple[Runs, ...] = ()
    mask: Mask | None = None

    @property
    def pairs(self) -> float:
        """Of query and key in all rows of the batch that it cannot do without, if all rows are cut alike."""
        found = sum((p.stop - p.start) * (p.last - p.first) for row in self.by_query for p in row)
        return found + sum(g * m * (m + 1) / 2 for g, m in (some.shape for some in self.inside))


def image_part(images: Compact, views: Rows | None, mask: Mask | None) -> Part:
    """Text over the images before it."""
    rows = views or []
    return Part(images, rows, _by_key(rows), mask=mask)


def text_part(runs: Rows, queries: Compact, keys: Compact | None, length: int) -> Part:
    """Text over keys that it is among.

    Args:
        runs: Stretches of queries in one piece of the keys; `first` is where what they see begins, `last` where their
            own first token stands.
        queries: The text.
        keys: What it sees, compacted; None for all tokens.
        length: Keys of a row.
    """
    batch, size = queries.index.shape
    alike: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for b in range(batch):
        for run in runs[b if len(runs) > 1 else 0]:
            count = run.stop - run.start
            alike[-(-count // ALIKE)].append((b * size + run.start, b * length + run.last, count))
    device = queries.index.device
    sizes = batch * size, batch * length
    before = runs if any(run.first < run.last for row in runs for run in row) else []
    return Part(keys, before, _by_key(before), tuple(_alike(some, sizes, device) for some in alike.values()))


def _alike(some: list[tuple[int, int, int]], sizes: tuple[int, int], device: torch.device) -> Runs:
    """Of the flat positions of runs' first tokens, among so many queries and keys, and their lengths."""
    query, key, count = torch.tensor(some, device=device).T[..., None]
    longest = int(count.max())
    slot = torch.arange(longest, device=device)
    inside = torch.minimum(slot, count - 1)
    full = bool((count == longest).all())
    chosen = None if full else (slot < count).flatten().nonzero().squeeze(1)
    index: list[Tensor | None] = []
    for begin, all_of_them in zip((query, key), sizes, strict=True):
        flat = (begin + inside).flatten()
        whole = full and len(flat) == all_of_them and bool((flat == torch.arange(len(flat), device=device)).all())
        index.append(None if whole else flat)
    return Runs(index[0], index[1], (len(some), longest), chosen)


def _by_key(rows: Rows) -> Rows:
    """Pieces by query, in which what is seen begins at one place and grows, as pieces by key."""
    found: Rows = []
    for row in rows:
        pieces: list[Piece] = []
        for number, piece in enumerate(row):
            before = row[number - 1].last if number and row[number - 1].first == piece.first else piece.first
            if piece.last > before:
                stop = next((p.start for p in row[number:] if p.first != piece.first), row[-1].stop)
                pieces.append(Piece(piece.start, stop, before, piece.last))
        found.append(pieces)
    return found

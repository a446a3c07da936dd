"""How `parts.py` computes a softmax in calls without masks: stretches of text over the keys before them, and blocks.

torch's causal kernel for CPUs computes 512 keys at a time for some 256 queries, also above the diagonal: a quarter to
a half of its work on rows of one to two thousand tokens. So text is cut into blocks; each attends without a mask to all
that stands before it, and all blocks in few calls to themselves. Backward, the same pairs are cut by keys: then the
gradient of a key is written once.

Shapes: B batch, S sequence, T compacted queries; G blocks, M tokens of the longest.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from visualchat.attention.compact import Compact, Mask, Piece, Rows

BLOCK = 256
"""Most tokens of a block: fewer make more calls, more compute more above the diagonal."""
ALIKE = 64
"""Blocks whose lengths differ by less are one call."""


@dataclass(frozen=True)
class Blocks:
    """Text that attends causally among itself, in blocks of about one length.

    Attributes:
        index: (G · M) flat positions in B × T; beyond a block's length its last token's; None where the blocks are
            the whole text, in its order.
        keys: (G · M) the same tokens among the keys, flat; None likewise.
        shape: G and M.
        chosen: Which entries of `index` are within their block, flat; None where all are.
    """

    index: Tensor | None
    keys: Tensor | None
    shape: tuple[int, int]
    chosen: Tensor | None

    def without_surplus(self, tensor: Tensor) -> Tensor:
        """`tensor` (G, H, M, ...), 0 beyond each block's length."""
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
        by_query: Stretches of queries, each over all keys that it sees but those of its own block.
        by_key: The same pairs as stretches of keys, each with all queries that see it.
        blocks: The text within each block, where the keys hold it.
        mask: Instead of stretches, where a mask serves better.
    """

    keys: Compact | None
    by_query: Rows
    by_key: Rows
    blocks: tuple[Blocks, ...] = ()
    mask: Mask | None = None

    @property
    def pairs(self) -> float:
        """Of query and key in all rows of the batch that it cannot do without, if all rows are cut alike."""
        found = sum((p.stop - p.start) * (p.last - p.first) for row in self.by_query for p in row)
        return found + sum(g * m * (m + 1) / 2 for g, m in (blocks.shape for blocks in self.blocks))


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
    rows = [[block for run in row for block in _cut(run)] for row in runs]
    batch, size = queries.index.shape
    if len(rows) < batch:  # all rows alike
        each = [(b, piece) for b in range(batch) for piece in rows[0]]
    else:
        each = [(b, piece) for b, row in enumerate(rows) for piece in row]
    alike: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for b, piece in each:
        count = piece.stop - piece.start
        alike[-(-count // ALIKE)].append((b * size + piece.start, b * length + piece.last, count))
    device = queries.index.device
    sizes = batch * size, batch * length
    return Part(keys, rows, _by_key(rows), tuple(_blocks(some, sizes, device) for some in alike.values()))


def _blocks(some: list[tuple[int, int, int]], sizes: tuple[int, int], device: torch.device) -> Blocks:
    """Of the flat positions of blocks' first tokens, among so many queries and keys, and their lengths."""
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
    return Blocks(index[0], index[1], (len(some), longest), chosen)


def _cut(run: Piece) -> list[Piece]:
    """The blocks of a stretch, of lengths as even as can be."""
    count = run.stop - run.start
    pieces = -(-count // BLOCK)
    ends = [run.start + count * n // pieces for n in range(pieces + 1)]
    return [Piece(s, e, run.first, run.last + s - run.start) for s, e in itertools.pairwise(ends)]


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

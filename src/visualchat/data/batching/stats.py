"""What a batch holds, for the metrics of a run: whose answers, how many tokens, how many images.

Counted where batches are made, so that training neither counts nor waits for a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visualchat.dialogue import Dialogue
from visualchat.dialogue.encoding import IGNORE_INDEX


class BatchStats(NamedTuple):
    """What a batch holds. A source is the index of a part of the `Mixture` that the batch is made of.

    Attributes:
        token_source: (answer tokens,), the source of each, in row-major order.
        answer_source: The source of each answer, in the same order.
        answer_tokens: How many answer tokens each source has.
        tokens: All tokens that are not padding.
        positions: All positions, padding included.
        images: The images of all dialogues; one that several dialogues show counts in each.
    """

    token_source: Tensor
    answer_source: tuple[int, ...]
    answer_tokens: tuple[int, ...]
    tokens: int
    positions: int
    images: int


def batch_stats(inputs: Mapping[str, Any], rows: Sequence[Sequence[tuple[Dialogue, int]]], sources: int) -> BatchStats:
    """The statistics of a batch; an idle one, which has no rows, holds padding alone.

    Args:
        inputs: The model's inputs.
        rows: Of each row its dialogues, as they stand in the batch, each with its source.
        sources: How many sources there are.
    """
    labels: Tensor = inputs["labels"]
    if not rows:
        return BatchStats(torch.zeros(0, dtype=torch.long), (), (0,) * sources, 0, labels.numel(), 0)
    most = max(map(len, rows))
    table = torch.tensor([[source for _, source in row] + [0] * (most - len(row)) for row in rows])
    row, column = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    segments = inputs.get("segment_ids")
    token_source = table[row, torch.zeros_like(row) if segments is None else segments[row, column + 1]]
    together = [pair for row_ in rows for pair in row_]
    return BatchStats(
        token_source=token_source,
        answer_source=tuple(source for dialogue, source in together for _ in dialogue.turns),
        answer_tokens=tuple(torch.bincount(token_source, minlength=sources).tolist()),
        tokens=int(inputs["attention_mask"].sum()),
        positions=labels.numel(),
        images=sum(len(dialogue.images) for dialogue, _ in together),
    )

"""The tokens of every dialogue, counted once before they are packed or grouped; no image is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import distributed

from visualchat.data.batching.collate import BatchingProcessor, encode_example, left_out, placed
from visualchat.data.batching.truncation import Trimmed
from visualchat.data.progress import watched
from visualchat.data.workers import map_in_workers
from visualchat.dialogue import Dialogue

Measured = tuple[int, Trimmed | None]
"""The tokens of a dialogue, and what was trimmed of it."""


def token_lengths(
    dialogues: Sequence[Dialogue],
    processor: BatchingProcessor,
    max_length: int | None,
    *,
    skip: bool = False,
    num_workers: int = 0,
) -> tuple[dict[int, int], dict[int, Trimmed]]:
    """The tokens of every good dialogue, cut to the limit, and what was trimmed of dialogues, both by their indexes.

    Where several ranks run, each reads its share and all learn of all.

    Args:
        dialogues: All.
        processor: Encodes them.
        max_length: The most tokens of one; None for no limit.
        skip: Whether a bad row is left out; else it is an error.
        num_workers: Processes that share the work of a rank.

    Raises:
        ValueError: A row is bad and `skip` is False.
    """
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    share = range(rank, len(dialogues), ranks)
    read = map_in_workers(partial(_measure, dialogues, processor, max_length, skip), share, num_workers, 256)
    measured: list[Measured] = []
    failure: ValueError | None = None
    try:
        measured = list(read if rank else watched(read, "measuring dialogues", len(share)))
    except ValueError as error:  # told to all ranks first, or they would wait for this one for ever
        failure = error
    shares = [(measured, failure)]
    if ranks > 1:
        shares = [(measured, failure)] * ranks
        distributed.all_gather_object(shares, (measured, failure))
    for _, raised in shares:
        if raised is not None:
            raise raised
    ordered = [(index, *shares[index % ranks][0][index // ranks]) for index in range(len(dialogues))]
    lengths = {index: length for index, length, trimmed in ordered if trimmed is None or not trimmed.reason}
    return lengths, {index: trimmed for index, _, trimmed in ordered if trimmed is not None}


def _measure(
    dialogues: Sequence[Dialogue], processor: BatchingProcessor, max_length: int | None, skip: bool, index: int
) -> Measured:
    """Dialogue `index`; a bad one has no tokens."""
    try:
        example = encode_example(dialogues[index], processor, max_length)
    except ValueError as error:
        if not skip:
            raise ValueError(placed(error, dialogues, index)) from error
        return 0, left_out(error, dialogues, index)
    return len(example.encoding), example.trimmed

"""Dialogues to be judged by: a number of them, spread evenly over a set, sound and cut to the limit as in training."""

from __future__ import annotations

from collections.abc import Sequence

from visualchat.data.batching.collate import BatchingProcessor, encode_example
from visualchat.data.batching.images import check_images
from visualchat.data.blend.mixture import Mixture
from visualchat.dialogue import Dialogue


def spread(
    dialogues: Sequence[Dialogue],
    count: int | None,
    processor: BatchingProcessor,
    max_length: int | None,
    *,
    skip: bool = False,
) -> list[Dialogue]:
    """At most `count` of the dialogues, always the same ones, cut to the limit; their images are not kept decoded.

    Args:
        dialogues: All.
        count: How many; None for all.
        processor: Measures them.
        max_length: The most tokens of one.
        skip: Whether the next good one takes the place of a bad one; else a bad one is an error.

    Raises:
        ValueError: One of them is bad and `skip` is False.
    """
    size = len(dialogues)
    count = size if count is None else count
    chosen: dict[int, Dialogue] = {}
    for start in sorted({n * size // count for n in range(count)}):
        for index in range(start, size):
            if index in chosen:
                continue
            try:
                dialogue = encode_example(dialogues[index], processor, max_length).dialogue
                check_images(dialogue)
            except ValueError:
                if not skip:
                    raise
                continue
            chosen[index] = dialogue
            break
    return list(chosen.values())


def held_out(
    dialogues: Sequence[Dialogue],
    most: int | None,
    processor: BatchingProcessor,
    max_length: int | None,
    *,
    skip: bool = False,
) -> dict[str, list[Dialogue]]:
    """The same for each part of a mixture, by its name; `validation` for a plain data set.

    Raises:
        ValueError: As `spread`; or no dialogue is sound.
    """
    mixture = Mixture.of(dialogues)
    parts = {"validation": dialogues} if mixture.plain else mixture.parts
    chosen = {name: spread(part, most, processor, max_length, skip=skip) for name, part in parts.items()}
    if not any(chosen.values()):
        raise ValueError("no validation dialogue is sound: visualchat-data check says why")
    return {name: part for name, part in chosen.items() if part}

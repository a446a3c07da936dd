"""A look at every dialogue before the first step: what is bad and why, how long each is, what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from visualchat.data.batching.collate import BatchingProcessor, encode_example, placed
from visualchat.data.batching.images import check_images
from visualchat.data.blend.mixture import Mixture
from visualchat.data.workers import map_in_workers
from visualchat.dialogue import Dialogue
from visualchat.dialogue.encoding import IGNORE_INDEX


@dataclass(frozen=True)
class Finding:
    """One row of a data set.

    Attributes:
        row: Its number, from 0.
        source: Which source it comes from.
        id: The dialogue's id; empty where the row is not even a dialogue.
        reason: What is wrong with it; empty where nothing is.
        turns: Rounds of the whole dialogue.
        images: Images of the whole dialogue.
        tokens: Tokens of the part that fits the limit.
        answer_tokens: Those of them that are trained.
        kept: Rounds of the part that fits.
        damage: Whether what is wrong is a damaged row of its source.
        sound_rows: Of a bad dialogue, the rows that are sound and lost with it.
    """

    row: int
    source: str
    id: str = ""
    reason: str = ""
    turns: int = 0
    images: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    kept: int = 0
    damage: bool = False
    sound_rows: int = 0


def look(
    dialogues: Sequence[Dialogue], processor: BatchingProcessor, max_length: int | None, decode: bool, row: int
) -> Finding:
    """What row `row` is; with `decode` its images are decoded, too."""
    source, dialogue = Mixture.of(dialogues).locate(row)[0], None
    try:
        dialogue = dialogues[row]
        example = encode_example(dialogue, processor, max_length)
        if decode:
            check_images(dialogue)
    except ValueError as error:
        return Finding(row, source, dialogue.id if dialogue else "", placed(error, dialogues, row))
    return Finding(
        row=row,
        source=source,
        id=dialogue.id,
        turns=len(dialogue.turns),
        images=len(dialogue.images),
        tokens=len(example.encoding),
        answer_tokens=sum(label != IGNORE_INDEX for label in example.encoding.labels),
        kept=len(example.dialogue.turns),
    )


def survey(
    dialogues: Sequence[Dialogue],
    processor: BatchingProcessor,
    max_length: int | None = None,
    *,
    decode: bool = True,
    num_workers: int = 0,
) -> Iterator[Finding]:
    """Look at every row, in order.

    Args:
        dialogues: All rows.
        processor: Counts the tokens.
        max_length: The length limit of training.
        decode: Whether to decode every image, the one way to know that it is sound.
        num_workers: Processes that share the work.
    """
    look_at = partial(look, Mixture.of(dialogues), processor, max_length, decode)
    yield from map_in_workers(look_at, range(len(dialogues)), num_workers)


@dataclass(frozen=True)
class Totals:
    """Sums over the dialogues of one source; `sound_rows` are those lost with bad dialogues."""

    rows: int = 0
    bad: int = 0
    cut: int = 0
    turns: int = 0
    images: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    sound_rows: int = 0


def totals(findings: Iterable[Finding]) -> dict[str, Totals]:
    """The sums by source, and `all` at the end where there are several sources."""
    sums: dict[str, Counter[str]] = {}
    for finding in findings:
        for name in (finding.source, "all"):
            count = sums.setdefault(name, Counter())
            count["rows"] += 1
            count["bad"] += bool(finding.reason)
            count["cut"] += finding.kept < finding.turns
            for field in ("turns", "images", "tokens", "answer_tokens", "sound_rows"):
                count[field] += getattr(finding, field)
    overall = sums.pop("all", Counter())
    if len(sums) > 1:
        sums["all"] = overall
    return {name: Totals(**count) for name, count in sums.items()}


def quantiles(values: Sequence[int]) -> Mapping[str, float]:
    """Minimum, median, mean, 95th percentile and maximum of a sequence that is not empty."""
    ordered = sorted(values)
    return {
        "min": ordered[0],
        "median": ordered[len(ordered) // 2],
        "mean": sum(ordered) / len(ordered),
        "95%": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "max": ordered[-1],
    }

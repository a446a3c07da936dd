"""What a run goes through: dialogues, tokens and images an epoch, a full batch, optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from visualchat.data.batching.sampler import batches_in
from visualchat.plan.memory import Step
from visualchat.plan.shapes import Sizes

MOST_IMAGES = 8
"""Images of a full row of the paper's blends."""


@dataclass(frozen=True)
class Corpus:
    """One set of dialogues, by its means.

    Attributes:
        dialogues: How many, training and validation together.
        images: Images of a dialogue.
        text: Text tokens of a dialogue.
        answers: Those of them that are answers.
    """

    dialogues: float
    images: float
    text: float
    answers: float


TABLE_1: dict[str, Corpus] = {
    "llava": Corpus(49_924, 2.0, 480, 330),
    "llava_dial": Corpus(37_818, 1.5, 600, 330),
    "otter_mimicit_cgd": Corpus(70_940, 2.0, 170, 60),
    "otter_mimicit_sd": Corpus(8_006, 2.0, 260, 140),
    "otter_mimicit_sn": Corpus(487, 6.0, 330, 190),
    "otter_mimicit_tvc": Corpus(2, 8.0, 330, 150),
    "otter_mimicit_vst": Corpus(115, 6.5, 280, 130),
    "llava_otter_blend": Corpus(48_869, 2.5, 750, 400),
    "sparkles_dialogue": Corpus(6_520, 3.5, 550, 400),
}
"""Dialogues as in table 1 of arXiv 2309.14327; images and tokens are our assumptions from each corpus's form."""

SINGLE_IMAGE = ("llava", "llava_dial")
SETS: dict[str, tuple[str, ...]] = {
    "single_image": SINGLE_IMAGE,
    "set1": tuple(name for name in TABLE_1 if name != "sparkles_dialogue"),
    "set1_shuffled": tuple(name for name in TABLE_1 if name != "sparkles_dialogue"),
    "set2": tuple(TABLE_1),
}
"""The corpora of each blend under conf/data/blend."""


@dataclass(frozen=True)
class Workload:
    """An epoch of training dialogues.

    Attributes:
        dialogues: How many.
        images: Images of a dialogue, mean.
        text: Text tokens of a dialogue, mean.
        answers: Answer tokens of a dialogue, mean.
        source: Where these come from.
        longest: Tokens of the longest dialogue, if known.
        most_images: Images of the fullest dialogue, if known.
    """

    dialogues: int
    images: float
    text: float
    answers: float
    source: str
    longest: int | None = None
    most_images: int | None = None

    def tokens(self, image_tokens: int) -> float:
        """Tokens of a dialogue, mean."""
        return self.text + self.images * image_tokens


def of_table(corpora: Iterable[str], train_share: float = 0.9) -> Workload:
    """The training side of corpora of table 1."""
    chosen = [TABLE_1[name] for name in corpora]
    total = sum(corpus.dialogues for corpus in chosen)

    def mean(name: str) -> float:
        return sum(corpus.dialogues * getattr(corpus, name) for corpus in chosen) / total

    source = "dialogues: table 1 of the paper; images and tokens of each: assumed (docs/planning.md)"
    return Workload(round(train_share * total), mean("images"), mean("text"), mean("answers"), source)


def packed_rows(workload: Workload, image_tokens: int, max_length: int, filled: float = 0.95) -> int:
    """Rows of `max_length` tokens that hold an epoch, if they are filled to that share."""
    return math.ceil(workload.dialogues * workload.tokens(image_tokens) / (filled * max_length))


def planned_steps(rows: int, batch_size: int, devices: int, accumulate: int, epochs: int) -> int:
    """Optimizer steps of a run: as the sampler shares rows out and Lightning accumulates batches."""
    return epochs * math.ceil(batches_in(rows, batch_size, devices) / accumulate)


def full_step(sizes: Sizes, workload: Workload, batch_size: int, max_length: int, packing: bool) -> Step:
    """A batch of the fullest rows, which is what memory must hold."""
    tokens = min(max_length, workload.longest or max_length)
    dialogues = max(1.0, tokens / workload.tokens(sizes.image_tokens)) if packing else 1.0
    images = max(workload.most_images or MOST_IMAGES, round(dialogues * workload.images))
    answers = round(tokens * workload.answers / workload.tokens(sizes.image_tokens))
    return Step(batch_size, tokens, images, answers, checkpointing=False)

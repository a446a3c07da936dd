"""What a run goes through: dialogues, tokens and images an epoch, optimizer steps, operations, days.

Shapes: T text tokens of a row, I image tokens in N images of P tokens each, S = T + I.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from visualchat.attention import KINDS
from visualchat.data.batching.sampler import batches_in
from visualchat.dialogue.encoding import IGNORE_INDEX, Encoding
from visualchat.model.remote_code import load_without_code
from visualchat.plan.shapes import Sizes

CHARACTERS_PER_TOKEN = 3.17
"""Of English in LLaMA 2's tokenizer; LLaMA 3's makes fewer tokens, 3.94 (arXiv 2407.21783, section 3.2)."""


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


def optimizer_steps(rows: int, batch_size: int, devices: int, accumulate: int, epochs: int) -> int:
    """Optimizer steps of a run: as the sampler shares rows out and Lightning accumulates batches."""
    return epochs * math.ceil(batches_in(rows, batch_size, devices) / accumulate)


def attention_pairs(kind: str, text: float, images: float, image_tokens: int) -> float:
    """Pairs of query and key that a layer computes for one dialogue, if its images arrive evenly spread.

    For `mmca` and its like an image token computes none; one that sees its own image or unit counts that square.
    """
    total = text + images * image_tokens
    before = text * image_tokens * images * (images + 1) / (2 * max(images, 1.0))  # the text after an image sees it
    if kind == "cross":
        return text * text / 2
    if kind not in KINDS or KINDS[kind].image_context in ("all", "text"):
        return total * total / 2
    own = 0.0 if KINDS[kind].image_context == "self" else images * image_tokens**2
    return text * text / 2 + before + own


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one dialogue, forward and backward, by part."""

    vision: float
    projector: float
    linear: float
    attention: float
    head: float
    recomputed: float

    @property
    def total(self) -> float:
        return self.vision + self.projector + self.linear + self.attention + self.head + self.recomputed


def operations(sizes: Sizes, workload: Workload, kind: str, *, checkpointing: bool) -> Operations:
    """Operations of the mean dialogue.

    A linear map costs 2 a weight and token forward and as many for its input's gradient; for its weight's gradient only
    where it trains. Attention costs 4 D a pair and head forward and 2.5 times that backward (its scores are computed
    again). The frozen vision encoder has no backward pass.
    """
    images = workload.images
    image_tokens = images * sizes.image_tokens
    tokens = workload.text + (images if kind == "cross" else image_tokens)
    vision = images * sizes.vision_operations * (2 if sizes.vision_trained else 1)
    vision += 2 * images * sizes.patches * sizes.vision_trained
    projector = 2 * sizes.projector_linear * image_tokens * (3 if sizes.vision_trained else 2)
    pairs = attention_pairs(kind, workload.text, images, sizes.image_tokens)
    attention = 4 * sizes.layers * sizes.heads * sizes.head_size * pairs
    linear = 2 * sizes.linear * tokens
    if kind == "cross":  # its maps train; text reads the images before it
        crossing = workload.text * image_tokens * (images + 1) / (2 * max(images, 1.0))
        attention += 4 * sizes.cross_layers * sizes.hidden * crossing
        trained = sizes.linear_trained * tokens + sizes.cross_linear * tokens
        linear += 2 * sizes.cross_linear * tokens
    else:
        trained = sizes.linear_trained * tokens
    head = 4 * sizes.vocabulary * sizes.hidden * workload.answers
    not_again = 2 * sizes.layers * sizes.hidden * sizes.feed_forward * tokens  # a layer's last map: nothing needs it
    recomputed = linear - not_again + attention if checkpointing else 0.0
    return Operations(vision, projector, 2 * linear + 2 * trained, 3.5 * attention, head, recomputed)


PEAK_TFLOPS = {"a100": 312, "h100": 989, "h200": 989, "b200": 2250, "l40s": 362, "rtx4090": 165, "mi300x": 1307}
"""Dense bf16 operations a second of named GPUs, in 10^12, from their makers' data sheets."""

GPU_MEMORY = {"a100": 80, "h100": 80, "h200": 139, "b200": 180, "l40s": 44, "rtx4090": 24, "mi300x": 192}
"""GiB that each of them offers."""


def days(total_operations: float, gpus: int, peak_tflops: float, utilisation: float) -> float:
    """Days of computing at that share of the peak."""
    return total_operations / (gpus * peak_tflops * 1e12 * utilisation) / 86_400


def measured(encodings: Sequence[Encoding], images: Sequence[int], dialogues: int, source: str) -> Workload:
    """An epoch of so many dialogues, of which these are a sample.

    Args:
        encodings: Of the sample.
        images: How many images each of the sample shows.
        dialogues: Of the whole epoch.
        source: What is measured.
    """
    shown = [sum(encoding.mm_token_type_ids) for encoding in encodings]  # image tokens are 1, text is 0
    count = len(encodings)
    return Workload(
        dialogues,
        sum(images) / count,
        sum(len(encoding) - own for encoding, own in zip(encodings, shown, strict=True)) / count,
        sum(label != IGNORE_INDEX for encoding in encodings for label in encoding.labels) / count,
        f"{source}: {dialogues} dialogues, of which {count} were measured",
        max(map(len, encodings)),
        max(images),
    )


class TokenEstimate:
    """Stands in for a tokenizer that would have to be downloaded: as many tokens as a text's length suggests."""

    bos_token_id = eos_token_id = pad_token_id = 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """As a tokenizer of transformers is called; the ids mean nothing."""
        return {"input_ids": [0] * math.ceil(len(text) / CHARACTERS_PER_TOKEN)}


def local_tokenizer(path: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder or of the local Hub cache; None where it would have to be downloaded."""
    folder = Path(path)
    if not folder.is_dir():
        cached = try_to_load_from_cache(str(path), "tokenizer_config.json")
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    tokenizer: PreTrainedTokenizerBase = load_without_code(AutoTokenizer.from_pretrained, folder)
    return tokenizer

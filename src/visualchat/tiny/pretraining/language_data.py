"""What the tiny language model is pretrained on: strings to copy, dialogues over captions, and over folded captions.

A folded caption is an image without pixels: a 4x4 grid of word sums, laid out like the patches of the image. It
teaches the model the interface that a linear projector of patch features can reach.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from visualchat.dialogue.encoding import IGNORE_INDEX, Encoding, Modality, encode_segments, encode_text
from visualchat.dialogue.template import render
from visualchat.tiny.dialogues import SYSTEM, Sketch, caption_segments
from visualchat.tiny.pretraining.hints import Hint, copy_hints, dialogue_hints
from visualchat.tiny.pretraining.tokenizer import FILLER_WORD
from visualchat.tiny.scenes import CELL_OF_PATCH, CELLS, PATCHES, Scene

# Shapes: B dialogues, S tokens, W = 4 words a patch, N = image tokens of the whole batch.

Form = Literal["text", "folded"]
"""How images enter a prompt: as their captions, or as folded captions."""

WORDS = 3  # colour, shape and place
_DROPPED = 0.15  # how often a covered patch is left empty, as where a shape hardly touches it


@dataclass(frozen=True)
class Item:
    """One encoded dialogue.

    Attributes:
        encoding: Its tokens; with folded captions, 16 slots an image.
        words: The words of each image token, `WORDS` ids each, padded with the padding token.
        kinds: The question type of each answer span.
        images: Number of images of the dialogue.
        hints: Where heads may be shown to look under causal attention.
    """

    encoding: Encoding
    words: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]
    images: int
    hints: tuple[Hint, ...]


@dataclass(frozen=True)
class TextBatch:
    """Padded dialogues: ids, labels, modality and attention mask [B, S]; words [N, W] of the image tokens in order."""

    input_ids: Tensor
    labels: Tensor
    mm_token_type_ids: Tensor
    attention_mask: Tensor
    words: Tensor
    items: tuple[Item, ...]


def encode_sketch(sketch: Sketch, tokenizer: PreTrainedTokenizerBase, form: Form, rng: random.Random) -> Item:
    """Encode a dialogue in one of the two forms; `rng` decides which patches of a folded caption are dropped."""
    kinds = tuple(turn.question.kind for turn in sketch.rounds)
    segments = caption_segments(sketch) if form == "text" else render(sketch.undrawn(), system=SYSTEM)
    encoding = encode_segments(segments, tokenizer, image_seq_length=PATCHES)
    words: list[tuple[int, ...]] = []
    if form == "folded":
        for scene in sketch.scenes:
            words += fold(scene, tokenizer, rng)
    return Item(encoding, tuple(words), kinds, len(sketch.scenes), dialogue_hints(sketch, encoding, tokenizer))


def fold(scene: Scene, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> list[tuple[int, ...]]:
    """The word ids of the 16 patches: " red", " circle", " top", " left" where a shape is, " empty" elsewhere."""
    pad = tokenizer.pad_token_id
    empty = (*encode_text(tokenizer, FILLER_WORD), *[pad] * (WORDS - 1))
    patches = [empty] * PATCHES
    for shape in scene.shapes:
        words = tuple(encode_text(tokenizer, f" {shape.name} {CELLS[shape.cell]}"))
        covered = [patch for patch in range(PATCHES) if CELL_OF_PATCH[patch] == shape.cell]
        filled = [patch for patch in covered if rng.random() >= _DROPPED] or [rng.choice(covered)]
        for patch in filled:
            patches[patch] = words
    return patches


def collate(items: Sequence[Item], pad: int) -> TextBatch:
    """Pad dialogues on the right to the longest."""
    length = max(len(item.encoding) for item in items)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])

    encodings = [item.encoding for item in items]
    words = [patch for item in items for patch in item.words]
    return TextBatch(
        input_ids=padded([e.input_ids for e in encodings], pad),
        labels=padded([e.labels for e in encodings], IGNORE_INDEX),
        mm_token_type_ids=padded([e.mm_token_type_ids for e in encodings], int(Modality.TEXT)),
        attention_mask=padded([[1] * len(e) for e in encodings], 0),
        words=torch.tensor(words, dtype=torch.long).reshape(-1, WORDS),
        items=tuple(items),
    )


def bucketed(items: list[Item], batch_size: int, rng: random.Random) -> Iterator[list[Item]]:
    """Batches of dialogues of similar length, in random order, so that little is padded."""
    items = sorted(items, key=lambda item: len(item.encoding))
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    rng.shuffle(batches)
    yield from batches


def copy_batch(
    rng: random.Random, batch_size: int, tokens: Sequence[int], bos: int
) -> tuple[Tensor, Tensor, list[tuple[Hint, ...]]]:
    """`<s>`, then a random string of 4 to 12 of these tokens that returns one to three times after random gaps.

    What this trains, looking up what followed an earlier occurrence, is the skill that every question about a caption
    needs and that dialogues alone teach late and suddenly.

    Returns:
        Ids and labels [B, S], labelled at the repeats without each one's first token, and the hints of each row.
    """

    def draw(length: int) -> list[list[int]]:
        return [rng.choices(tokens, k=length) for _ in range(batch_size)]

    size = rng.randint(4, 12)
    string = draw(size)
    rows = [[bos, *before, *s] for before, s in zip(draw(rng.randint(0, 5)), string, strict=True)]
    first = len(rows[0]) - size
    repeats: list[int] = []
    for _ in range(rng.randint(1, 3)):
        rows = [[*row, *gap, *s] for row, gap, s in zip(rows, draw(rng.randint(1, 6)), string, strict=True)]
        repeats.append(len(rows[0]) - size)
    ids = torch.tensor(rows)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for repeat in repeats:
        labels[:, repeat + 1 : repeat + size] = ids[:, repeat + 1 : repeat + size]
    return ids, labels, [copy_hints(len(rows[0]), first, repeats, size)] * batch_size

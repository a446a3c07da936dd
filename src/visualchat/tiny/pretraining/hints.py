"""Hints: where some heads of the tiny language models are shown to look while they are young.

Looking things up in context is learnt late and suddenly; a small loss on the attention of a few heads brings it about
in a tenth of the steps, and is then dropped. The first two make an induction head (Olsson et al., arXiv 2209.11895).

    layer 0, head 0    the previous token                                      strings to copy
    layer 1, head 0    what followed the earlier occurrence of this token      strings to copy
    layer 0, head 1    from what shows a shape to the number of its image      dialogues, causal attention
    layer 1, head 1    from the words of a place to the shape that is there    captions
    layer 2, head 0    from an answer to what shows the shape in question      dialogues, causal attention;
                       of two shapes compared, from the number of each image
    layer 3, head 0    from the answer of a comparison to those two numbers    dialogues, causal attention
                       (with hops: to each as much as to the other, so that
                       the sum of what they show tells whether it is equal)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from visualchat.dialogue.encoding import Encoding, Modality, encode_text
from visualchat.tiny.dialogues import Sketch
from visualchat.tiny.questions import Question
from visualchat.tiny.scenes import CELL_OF_PATCH, PATCHES, Scene

PREVIOUS, FOLLOWING, NUMBER, PLACE, ABOUT, BOTH = (0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0)
"""Layer and head of each hint, in the table's order."""

_PHRASE = 4  # tokens of "a red circle top-left"; a comma follows


class Hint(NamedTuple):
    """The head `where` (layer, head) should look from position `query` at the positions `keys`."""

    where: tuple[int, int]
    query: int
    keys: tuple[int, ...]


def copy_hints(length: int, first: int, repeats: Sequence[int], size: int) -> tuple[Hint, ...]:
    """Hints for a string of `size` tokens that stands at `first` and returns at each of `repeats`."""
    hints = [Hint(PREVIOUS, query, (query - 1,)) for query in range(1, length)]
    for repeat in repeats:
        hints += [Hint(FOLLOWING, repeat + k, (first + k + 1,)) for k in range(size - 1)]
    return tuple(hints)


def dialogue_hints(sketch: Sketch, encoding: Encoding, tokenizer: PreTrainedTokenizerBase) -> tuple[Hint, ...]:
    """Hints for a dialogue over captions or folded captions."""
    heading, _, end = encode_text(tokenizer, "### Image 1:\n")
    asking = encode_text(tokenizer, "### Question:\n")[0]
    digits = {token for number in range(1, 10) for token in encode_text(tokenizer, f" {number}")}
    ids = encoding.input_ids
    numbers = [i + 1 for i in range(len(ids) - 2) if ids[i] == heading and ids[i + 2] == end]
    folded = Modality.IMAGE in encoding.mm_token_type_ids
    hints: list[Hint] = []
    shown: dict[tuple[int, int], tuple[int, ...]] = {}  # image number and cell -> the positions of what stands there
    for image, (scene, number) in enumerate(zip(sketch.scenes, numbers, strict=True), start=1):
        for cell, keys in (_patches if folded else _words)(scene, number + 2).items():
            shown[image, cell] = keys
            hints += [Hint(NUMBER, query, (number,)) for query in keys]
            hints += [] if folded else [Hint(PLACE, query, (keys[2],)) for query in keys[3:]]
    # The last word of "a red circle top-left" can know the others; of an image's patches, each knows all.
    things_at = shown if folded else {place: keys[-1:] for place, keys in shown.items()}
    earlier: list[tuple[int, ...]] = []  # of each round, the positions of the image numbers that its question names
    for turn, (start, stop) in zip(sketch.rounds, encoding.answer_spans, strict=True):
        question = turn.question
        earlier.append(_numbers_of(ids, start, asking, digits))
        if question.hop:
            hints += _hop_hints(question, things_at, earlier, start - 1)
        elif question.kind == "same":
            things = [shown[thing] if folded else _telling(question, shown[thing]) for thing in question.about]
            hints += [Hint(ABOUT, query, keys) for query, keys in zip(earlier[-1], things, strict=True)]
            hints.append(Hint(BOTH, start - 1, earlier[-1]))
        elif question.about:
            keys = shown[question.about[0]]
            # A token is predicted from the one before. The first one is in question, of a place or "image k" both.
            for step in range(min(stop - start - 1, 2)):
                hints.append(Hint(ABOUT, start - 1 + step, keys if folded else _telling(question, keys)))
    return tuple(hints)


def _hop_hints(
    question: Question,
    things: dict[tuple[int, int], tuple[int, ...]],
    earlier: Sequence[tuple[int, ...]],
    answer: int,
) -> list[Hint]:
    """Hints for a question with hops: a named image's number stands for the thing that is asked about in it.

    Args:
        question: Asked last.
        things: The positions that tell what stands at an image's number and cell.
        earlier: For each round, the last one this question's, the positions of the image numbers in its question.
        answer: The position from which the answer's first token is predicted.
    """
    kind, about = question.kind, question.about
    if kind.startswith("back"):
        return [Hint(BOTH, answer, earlier[-1 - int(kind[-1])])]
    hints = [Hint(ABOUT, query, things[place]) for query, place in zip(earlier[-1], about, strict=False)]
    if kind == "same":
        return [*hints, *(Hint(BOTH, answer, (number,)) for number in earlier[-1])]
    if kind == "list":  # "image 1, image 3": every third token is a number
        images = sorted({number for number, _ in about})
        keys = [tuple(key for place in about if place[0] == image for key in things[place]) for image in images]
        return [Hint(ABOUT, answer + 1 + 3 * step, of_image) for step, of_image in enumerate(keys)]
    if about and kind != "common":
        steps = (0, 1) if kind in ("which", "odd") else (0,)
        hints += [Hint(ABOUT, answer + step, tuple(key for place in about for key in things[place])) for step in steps]
    return hints


def _numbers_of(ids: Sequence[int], answer: int, question: int, digits: set[int]) -> tuple[int, ...]:
    """The positions of the image numbers in the question before the answer that begins at `answer`.

    Args:
        ids: Of the whole dialogue.
        answer: A position.
        question: The token that opens a question.
        digits: The tokens of image numbers.
    """
    start = next(position for position in range(answer, -1, -1) if ids[position] == question)
    return tuple(position for position in range(start, answer) if ids[position] in digits)


def _words(scene: Scene, start: int) -> dict[int, tuple[int, ...]]:
    """The positions of each shape's words, " a red circle top-left", in a caption that begins at `start`."""
    return {
        shape.cell: tuple(range(start + number * (_PHRASE + 1), start + number * (_PHRASE + 1) + _PHRASE))
        for number, shape in enumerate(scene.shapes)
    }


def _patches(scene: Scene, start: int) -> dict[int, tuple[int, ...]]:
    """The positions of the patches of each filled cell of a folded caption that begins at `start`."""
    return {
        shape.cell: tuple(start + patch for patch in range(PATCHES) if CELL_OF_PATCH[patch] == shape.cell)
        for shape in scene.shapes
    }


def _telling(question: Question, words: tuple[int, ...]) -> tuple[int, ...]:
    """Which word of "a red circle top-left" tells the answer: it can know only what stands before it."""
    return (words[3],) if question.kind == "where" else (words[2],)


def hint_loss(attentions: Sequence[Tensor], hints: Sequence[Sequence[Hint]]) -> Tensor:
    """Mean over hinted heads of the mean negative logarithm of the attention paid to where they should look.

    Args:
        attentions: The weights of each layer, (B, H, S, S).
        hints: The hints of each row.
    """
    losses = []
    for layer, head in sorted({hint.where for row in hints for hint in row}):
        of_head = [(row, hint) for row, of_row in enumerate(hints) for hint in of_row if hint.where == (layer, head)]
        rows, queries = torch.tensor([(row, hint.query) for row, hint in of_head]).T
        paid = attentions[layer][rows, head, queries]  # (hints, S)
        pairs = torch.tensor([(number, key) for number, (_, hint) in enumerate(of_head) for key in hint.keys]).T
        looked = torch.zeros(len(of_head)).index_add(0, pairs[0], paid[pairs[0], pairs[1]])
        losses.append(-(looked + 1e-6).log().mean())
    return torch.stack(losses).mean()

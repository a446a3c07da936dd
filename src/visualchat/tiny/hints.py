"""Hints: where some heads of the tiny language models are shown to look while they are young.

Looking things up in context is learnt late and suddenly; a small loss on the attention of a few heads brings it about
in a tenth of the steps, and is then dropped. The first two make an induction head (Olsson et al., arXiv 2209.11895).

    layer 0, head 0    the previous token                                      strings to copy
    layer 1, head 0    what followed the earlier occurrence of this token      strings to copy
    layer 0, head 1    from a caption's words to the number of their image     dialogues
    layer 2, head 0    from an answer to the words it is read from             dialogues
    layer 2, head 1    likewise, to the second thing of a comparison           dialogues
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from visualchat.encoding import Encoding, encode_text
from visualchat.tiny.dialogues import Sketch
from visualchat.tiny.scenes import CELLS

PREVIOUS, FOLLOWING, NUMBER = (0, 0), (1, 0), (0, 1)
ABOUT = ((2, 0), (2, 1))
"""Layer and head of each hint; the names are those of the table above, from top to bottom."""


class Hint(NamedTuple):
    """The head `where` (layer, head) should look from position `query` at positions [start, stop)."""

    where: tuple[int, int]
    query: int
    start: int
    stop: int


def copy_hints(length: int, first: int, repeats: Sequence[int], size: int) -> tuple[Hint, ...]:
    """Hints for a string of `size` tokens that stands at `first` and returns at each of `repeats`."""
    hints = [Hint(PREVIOUS, query, query - 1, query) for query in range(1, length)]
    for repeat in repeats:
        hints += [Hint(FOLLOWING, repeat + k, first + k + 1, first + k + 2) for k in range(size - 1)]
    return tuple(hints)


def caption_hints(sketch: Sketch, encoding: Encoding, tokenizer: PreTrainedTokenizerBase) -> tuple[Hint, ...]:
    """Hints for a dialogue over captions: words look at their image's number, answers at what they are read from."""
    heading, _, end = encode_text(tokenizer, "### Image 1:\n")
    ids = encoding.input_ids
    numbers = [i + 1 for i in range(len(ids) - 2) if ids[i] == heading and ids[i + 2] == end]
    hints: list[Hint] = []
    words: dict[tuple[int, int], tuple[int, int]] = {}  # image number and cell -> the words of what stands there
    for image, (scene, number) in enumerate(zip(sketch.scenes, numbers, strict=True), start=1):
        start = number + 2
        for shape in scene.shapes:
            stop = start + len(encode_text(tokenizer, f" a {shape.name} at the {CELLS[shape.cell]}"))
            words[image, shape.cell] = (start, stop)
            hints += [Hint(NUMBER, query, number, number + 1) for query in range(start, stop)]
            start = stop + 1  # the comma
    for turn, (start, stop) in zip(sketch.rounds, encoding.answer_spans, strict=True):
        # a token is predicted from the one before; of the end token, and of long answers' later words, nothing is said
        queries = range(start - 1, stop - 2) if turn.question.kind in ("which", "where") else (start - 1,)
        for where, thing in zip(ABOUT, turn.question.about, strict=False):
            hints += [Hint(where, query, *words[thing]) for query in queries]
    return tuple(hints)


def hint_loss(attentions: Sequence[Tensor], hints: Sequence[Sequence[Hint]]) -> Tensor:
    """Mean over hinted heads of the mean negative logarithm of the attention paid to where they should look.

    Args:
        attentions: The weights of each layer, (B, H, S, S).
        hints: The hints of each row.
    """
    losses = []
    for layer, head in sorted({hint.where for row in hints for hint in row}):
        found = [
            (row, hint.query, hint.start, hint.stop)
            for row, of_row in enumerate(hints)
            for hint in of_row
            if hint.where == (layer, head)
        ]
        rows, queries, starts, stops = torch.tensor(found).T
        paid = attentions[layer][rows, head, queries]  # (hints, S)
        position = torch.arange(paid.shape[1])
        inside = (position >= starts[:, None]) & (position < stops[:, None])
        losses.append(-((paid * inside).sum(-1) + 1e-6).log().mean())
    return torch.stack(losses).mean()

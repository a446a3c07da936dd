"""Segments -> token ids, labels and modality ids: the one place where text becomes tokens, in training and chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from visualchat.attention import Modality
from visualchat.template import ImageSegment, Segment

IGNORE_INDEX = -100
"""The label of a token that is not trained (torch's `cross_entropy` leaves it out)."""


@dataclass(frozen=True)
class Encoding:
    """One dialogue as tokens; the three lists have one entry a token.

    Attributes:
        input_ids: Token ids; an image slot holds the filler id.
        labels: The token itself on answers and their end token, `IGNORE_INDEX` elsewhere.
        mm_token_type_ids: `Modality` of each token.
        answer_spans: For each answer the range [start, stop) of its tokens, end token included.
    """

    input_ids: list[int]
    labels: list[int]
    mm_token_type_ids: list[int]
    answer_spans: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.input_ids)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of plain text; spelled-out special tokens in it stay plain text and gain no power."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def filler_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills padding and image slots, never looked up there: the padding token's, else the end token's.

    Raises:
        ValueError: The tokenizer has no end-of-sequence token, so that an answer could not end.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token (eos_token); an answer could not end"
        )
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def encode_segments(
    segments: Sequence[Segment], tokenizer: PreTrainedTokenizerBase, *, image_seq_length: int, start: bool = True
) -> Encoding:
    """Encode each segment on its own, so that a prompt's tokens never depend on the answer that follows.

    Args:
        segments: What `visualchat.template.render` gave.
        tokenizer: Any tokenizer of transformers with an end-of-sequence token; its beginning-of-sequence token, where
            it has one, opens the dialogue.
        image_seq_length: Tokens an image takes.
        start: Whether the segments open the dialogue; False for the later part of one.

    Raises:
        ValueError: The tokenizer has no end-of-sequence token.
    """
    filler = filler_token_id(tokenizer)
    input_ids: list[int] = [tokenizer.bos_token_id] if start and tokenizer.bos_token_id is not None else []
    labels: list[int] = [IGNORE_INDEX] * len(input_ids)
    modality: list[int] = [Modality.TEXT] * len(input_ids)
    spans: list[tuple[int, int]] = []
    for segment in segments:
        if isinstance(segment, ImageSegment):
            ids = [filler] * image_seq_length
            supervised, kind = False, Modality.IMAGE
        else:
            ids = encode_text(tokenizer, segment.text)
            supervised, kind = segment.supervised, Modality.TEXT
        if supervised:
            ids = [*ids, tokenizer.eos_token_id]
            spans.append((len(input_ids), len(input_ids) + len(ids)))
        input_ids += ids
        labels += ids if supervised else [IGNORE_INDEX] * len(ids)
        modality += [kind] * len(ids)
    return Encoding(input_ids, labels, [int(m) for m in modality], tuple(spans))

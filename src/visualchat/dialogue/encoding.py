"""Segments -> token ids, labels, modality and unit ids: the one place where text becomes tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from visualchat.attention import Modality
from visualchat.dialogue.template import PAPER, ImageSegment, Segment, Template, TextSegment

IGNORE_INDEX = -100
"""The label of a token that is not trained (torch's `cross_entropy` leaves it out)."""

NO_UNIT = -1
"""The unit of a token that is neither an image's nor its label's."""


@dataclass(frozen=True)
class Encoding:
    """One dialogue as tokens; the four lists have one entry a token.

    Attributes:
        input_ids: Token ids; an image slot holds the filler id.
        labels: The token itself on answers and their end token, `IGNORE_INDEX` elsewhere.
        mm_token_type_ids: `Modality` of each token.
        unit_ids: The number (from 1) of the image that the token is of or labels; `NO_UNIT` for other text.
        answer_spans: For each answer the range [start, stop) of its tokens, end token included.
    """

    input_ids: list[int]
    labels: list[int]
    mm_token_type_ids: list[int]
    unit_ids: list[int]
    answer_spans: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.input_ids)

    def cut(self, turns: int) -> Encoding:
        """The first `turns` answered rounds, which are a prefix of any longer dialogue's tokens."""
        stop = self.answer_spans[turns - 1][1]
        return Encoding(
            self.input_ids[:stop],
            self.labels[:stop],
            self.mm_token_type_ids[:stop],
            self.unit_ids[:stop],
            self.answer_spans[:turns],
        )


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = False) -> list[int]:
    """Token ids of one text: see `encode_texts`."""
    return encode_texts(tokenizer, [text], special)[0]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = False) -> list[list[int]]:
    """Token ids of each text; special tokens spelled in it are plain text, without power, unless `special`.

    Raises:
        ValueError: A text holds what is no character, such as half of a surrogate pair.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            part = error.object[error.start : error.end]
            raise ValueError(
                f"the text is not valid: {part!r} at character {error.start + 1} is no character"
            ) from error
    return tokenizer([*texts], add_special_tokens=False, split_special_tokens=not special)["input_ids"] if texts else []


def end_token_ids(tokenizer: PreTrainedTokenizerBase, template: Template = PAPER) -> list[int]:
    """What ends an answer, at least one token; the last of them is where generation stops.

    Raises:
        ValueError: The tokenizer has no end-of-sequence token, so that an answer could not end.
    """
    if template.end is not None:
        word = encode_text(tokenizer, "a")
        whole = encode_text(tokenizer, f"a{template.end}", special=True)  # a tokenizer may begin any text with a space
        return whole[len(word) :] if whole[: len(word)] == word else encode_text(tokenizer, template.end, special=True)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token (eos_token); an answer could not end"
        )
    return [tokenizer.eos_token_id]


def filler_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills padding and image slots, never looked up there: the padding token's, else the end token's.

    Raises:
        ValueError: The tokenizer has neither.
    """
    return end_token_ids(tokenizer)[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _texts_encoded(segments: Sequence[Segment], tokenizer: PreTrainedTokenizerBase) -> dict[int, list[int]]:
    """Token ids of each segment of text by its place; all at once, since every call of a tokenizer costs."""
    found: dict[int, list[int]] = {}
    for special in (False, True):
        texts = {
            n: text for n, text in enumerate(segments) if isinstance(text, TextSegment) and text.special == special
        }
        ids = encode_texts(tokenizer, [text.text for text in texts.values()], special)
        found.update(zip(texts, ids, strict=True))
    return found


def encode_segments(
    segments: Sequence[Segment],
    tokenizer: PreTrainedTokenizerBase,
    *,
    image_seq_length: int,
    template: Template = PAPER,
    start: bool = True,
) -> Encoding:
    """Encode each segment on its own, so that a prompt's tokens never depend on the answer that follows.

    Args:
        segments: What `visualchat.dialogue.template.render` gave.
        tokenizer: Any tokenizer of transformers in which an answer can end.
        image_seq_length: Tokens an image takes.
        template: What they were rendered with.
        start: Whether the segments open the dialogue; False for the later part of one.

    Raises:
        ValueError: The tokenizer has no end-of-sequence token, and the template no end of its own.
    """
    end, filler = end_token_ids(tokenizer, template), filler_token_id(tokenizer)
    add_bos = start and template.add_bos and tokenizer.bos_token_id is not None
    input_ids: list[int] = [tokenizer.bos_token_id] if add_bos else []
    labels: list[int] = [IGNORE_INDEX] * len(input_ids)
    modality: list[int] = [Modality.TEXT] * len(input_ids)
    units: list[int] = [NO_UNIT] * len(input_ids)
    spans: list[tuple[int, int]] = []
    texts = _texts_encoded(segments, tokenizer)
    for place, segment in enumerate(segments):
        if isinstance(segment, ImageSegment):
            ids = [filler] * image_seq_length
            supervised, kind, unit = False, Modality.IMAGE, segment.number
        else:
            ids = texts[place]
            supervised, kind = segment.supervised, Modality.TEXT
            unit = NO_UNIT if segment.label is None else segment.label
        if supervised:
            ids = [*ids, *end]
            spans.append((len(input_ids), len(input_ids) + len(ids)))
        input_ids += ids
        labels += ids if supervised else [IGNORE_INDEX] * len(ids)
        modality += [kind] * len(ids)
        units += [unit] * len(ids)
    return Encoding(input_ids, labels, [int(m) for m in modality], units, tuple(spans))

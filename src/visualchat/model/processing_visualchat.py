"""Dialogues -> what the model takes: the one place where template, tokenizer and image processor meet.

Training, evaluation and chat all come through here, so they cannot drift apart.

Shapes: B rows of one dialogue each, or of several with packing; S tokens of the longest, N images of the whole batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from visualchat.attention import Modality
from visualchat.dialogue import Dialogue
from visualchat.dialogue.chat_format import chat_format
from visualchat.dialogue.encoding import (
    IGNORE_INDEX,
    NO_UNIT,
    Encoding,
    encode_segments,
    end_token_ids,
    filler_token_id,
)
from visualchat.dialogue.template import PAPER, PAPER_SYSTEM, SPECIAL, Segment, Template, render
from visualchat.images.decode import Picture, decode_image
from visualchat.images.feature_store import FeatureStore, picture_key
from visualchat.model.processing_prompts import ProcessingPrompts
from visualchat.model.remote_code import load_without_code
from visualchat.model.vision import load_image_processor
from visualchat.model.vision.pixels import normalised, scaled


def prompt_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """`paper`: figure 3; `special`: its headings as special tokens; `chat`: the tokenizer's own chat format.

    Raises:
        ValueError: The name is unknown, or the tokenizer has no usable chat format.
    """
    if name == "chat":
        return chat_format(tokenizer)
    templates = {"paper": PAPER, "special": SPECIAL}
    if name not in templates:
        raise ValueError(f"unknown template {name!r}, expected one of paper, special, chat")
    return templates[name]


class VisualChatProcessor(ProcessingPrompts, ProcessorMixin):  # type: ignore[misc]
    """Tokenizer, image processor and template as one.

    Args:
        image_processor: Of the vision encoder.
        tokenizer: Of the language model.
        image_seq_length: Tokens an image takes, as in the model's configuration.
        system: The text before the first turn.
        template: What stands around system text, questions and answers: a name of `prompt_template`. Special tokens
            that it needs are added to the tokenizer; the model's vocabulary must have room for them (`vocab_size` of
            `VisualChatForConditionalGeneration.from_backbones`).
        chat_template: Of transformers; must be None: the tokenizer's own is what `template="chat"` reads.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_seq_length: int = 256,
        system: str = PAPER_SYSTEM,
        template: str = "paper",
        chat_template: str | None = None,
    ) -> None:
        self.image_seq_length = image_seq_length
        self.system = system
        self.template = template
        self._texts = PAPER
        if tokenizer is not None:
            self._texts = prompt_template(template, tokenizer)
            tokenizer.add_tokens([*self._texts.tokens], special_tokens=True)
            tokenizer.padding_side = (
                "left"  # whoever pads prompts by the tokenizer, such as a pipeline, pads for generate
            )
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_backbones(
        cls,
        vision: str | Path,
        language: str | Path,
        *,
        image_seq_length: int,
        system: str = PAPER_SYSTEM,
        template: str = "paper",
    ) -> VisualChatProcessor:
        """The processor of `VisualChatForConditionalGeneration.from_backbones` with the same backbones."""
        image_processor = load_image_processor(vision)
        tokenizer = load_without_code(AutoTokenizer.from_pretrained, language)
        return cls(image_processor, tokenizer, image_seq_length, system, template)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **keywords: Any) -> VisualChatProcessor:
        """The processor of a saved folder or of the Hub; code that lies there is not run."""
        found: VisualChatProcessor = load_without_code(super().from_pretrained, folder, **keywords)
        return found

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Nothing: what is saved names its code already, and no file of this package is to be copied beside it."""

    @property
    def end_token_ids(self) -> list[int]:
        """What ends an answer; generation stops at the last of them."""
        return end_token_ids(self.tokenizer, self._texts)

    def render(self, dialogue: Dialogue) -> tuple[Segment, ...]:
        """One dialogue as segments."""
        return render(dialogue, self.system, self._texts)

    def encode(self, dialogue: Dialogue, done: int = 0) -> Encoding:
        """One dialogue as token ids, labels, modality and unit ids, from its turn `done` on."""
        before = len(self.render(replace(dialogue, turns=dialogue.turns[:done]))) if done else 0
        return encode_segments(
            self.render(dialogue)[before:],
            self.tokenizer,
            image_seq_length=self.image_seq_length,
            template=self._texts,
            start=not done,
        )

    def batch(
        self,
        dialogues: Sequence[Dialogue],
        *,
        padding_side: str = "right",
        max_length: int | None = None,
        rows: Sequence[int] | None = None,
        share_images: bool = False,
        features: FeatureStore | None = None,
        encodings: Sequence[Encoding] | None = None,
        pictures: Sequence[Picture] | None = None,
    ) -> BatchFeature:
        """Several dialogues, with or without images, as one padded batch.

        Args:
            dialogues: At least one.
            padding_side: `right` for training, `left` for generation.
            max_length: The most tokens a row may have; None for no limit.
            rows: How many of the dialogues, in order, share each row (packing); None for one a row.
            share_images: Whether pictures that are equal pixel for pixel stand in `pixel_values` only once.
            features: A store of vision features. Pictures that are in it are not encoded: `pixel_values` hold the
                others, `vision_features` (N, P, D) what is known, 0 at the others, `feature_keys` a key for each of the
                others and "" for those that are known, and `features_damaged` says how many files were damaged.
            encodings: What `encode` gave of each dialogue, where that is known.
            pictures: What `prepare` gave of each image, in order, where that is known.

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids`, `unit_ids` (number of the image that a token is of or
            labels, else -1) and `labels`, each (B, S), and, where there is an image, `pixel_values` (N, 3, height,
            width) with the images row by row. With `rows` also `position_ids` (B, S), counted from 0 in each dialogue,
            and `segment_ids` (B, S), the dialogue's number in its row, -1 at padding; with shared images also
            `image_index` (slots,), the entry of `pixel_values` that fills each slot.

        Raises:
            ValueError: A row is too long, or an image cannot be read; the dialogue is named.
        """
        counts = [1] * len(dialogues) if rows is None else list(rows)
        assert sum(counts) == len(dialogues), "every dialogue stands in a row"
        waiting = iter([self.encode(dialogue) for dialogue in dialogues] if encodings is None else encodings)
        packed = [[next(waiting) for _ in range(count)] for count in counts]
        if max_length is not None:
            _check_lengths(packed, dialogues, max_length)
        columns = _columns(packed, filler_token_id(self.tokenizer), padding_side)
        if rows is None:
            del columns["position_ids"], columns["segment_ids"]
        if pictures is None:  # one after the other: decoded pictures may be huge
            pictures = [
                self.prepare(decode_image(image, f"{dialogue.id}, image {number}"), share_images, features is not None)
                for dialogue in dialogues
                for number, image in enumerate(dialogue.images, start=1)
            ]
        columns |= self._pictures(pictures, share_images, features)
        return BatchFeature(columns)

    def prepare(self, image: Image.Image, share_images: bool = True, stored: bool = False) -> Picture:
        """A decoded picture at the encoder's size.

        Args:
            image: RGB.
            share_images: Whether it needs a name by which an equal one is found in the same batch.
            stored: Whether the name must be that of a `FeatureStore`: of all its pixels, not of the scaled ones.
        """
        pixels = scaled(self.image_processor, image)
        if stored:
            return Picture(pixels, picture_key(image))
        stored_order = pixels.permute(1, 2, 0).contiguous().numpy()  # as PIL has them: no copy
        return Picture(pixels, hashlib.sha256(stored_order.data).hexdigest() if share_images else "")

    def _pictures(self, pictures: Sequence[Picture], share_images: bool, store: FeatureStore | None) -> dict[str, Any]:
        """The images in order, if there are any, and `image_index` where some are shared; see `batch`."""
        if not pictures:
            return {}
        found: dict[str, Any] = {}
        if share_images:
            distinct = {picture.key: picture for picture in pictures}
            if len(distinct) < len(pictures):
                places = {key: place for place, key in enumerate(distinct)}
                found["image_index"] = torch.tensor([places[picture.key] for picture in pictures])
            pictures = [*distinct.values()]
        if store is not None:
            known = store.lookup([picture.key for picture in pictures])
            pictures = [picture for picture, key in zip(pictures, known.keys, strict=True) if key]
            found |= {"feature_keys": known.keys, "features_damaged": known.damaged}
            if known.features is not None:
                found["vision_features"] = known.features
        if pictures:
            found["pixel_values"] = normalised(self.image_processor, [picture.pixels for picture in pictures])
        return found

    def prompt(self, dialogues: Sequence[Dialogue]) -> BatchFeature:
        """What `generate` takes to answer the open last turn of each dialogue: a left-padded batch without labels."""
        features = self.batch(dialogues, padding_side="left")
        del features["labels"]
        return features

    def _padded(self, encodings: Sequence[Encoding], padding_side: str, length: int) -> dict[str, Any]:
        """Encodings of one row each as tensors (B, S), S at least `length`, without what only packed rows have."""
        rows = [[encoding] for encoding in encodings]
        columns = _columns(rows, filler_token_id(self.tokenizer), padding_side, length)
        del columns["position_ids"], columns["segment_ids"]
        return columns


def _check_lengths(packed: Sequence[Sequence[Encoding]], dialogues: Sequence[Dialogue], max_length: int) -> None:
    """Raise the error of `VisualChatProcessor.batch` if a row is longer than `max_length`."""
    first = 0
    for row in packed:
        length = sum(map(len, row))
        if length > max_length:
            own = dialogues[first : first + len(row)]
            turns, images = sum(len(d.turns) for d in own), sum(len(d.images) for d in own)
            raise ValueError(
                f"{', '.join(d.id for d in own)}: {length} tokens ({turns} turns, {images} images) exceed the limit of "
                f"{max_length}"
            )
        first += len(row)


def _columns(packed: Sequence[Sequence[Encoding]], filler: int, padding_side: str, length: int = 0) -> dict[str, Any]:
    """The tensors (B, S) of a batch whose rows are one or several dialogues each."""
    padding = {
        "input_ids": filler,
        "attention_mask": 0,
        "mm_token_type_ids": int(Modality.TEXT),
        "unit_ids": NO_UNIT,
        "labels": IGNORE_INDEX,
        "segment_ids": -1,
    }
    longest = max(length, *(sum(map(len, row)) for row in packed))
    columns = {name: np.full((len(packed), longest), value, dtype=np.int64) for name, value in padding.items()}
    columns["position_ids"] = np.empty((len(packed), longest), dtype=np.int64)
    for row, encodings in enumerate(packed):
        missing = longest - sum(map(len, encodings))
        begins, free = (0, longest - missing) if padding_side == "right" else (missing, 0)
        columns["position_ids"][row, free : free + missing] = np.arange(missing)
        for number, encoding in enumerate(encodings):
            place = row, slice(begins, begins + len(encoding))
            for name in ("input_ids", "mm_token_type_ids", "unit_ids", "labels"):
                columns[name][place] = getattr(encoding, name)
            columns["attention_mask"][place], columns["segment_ids"][place] = 1, number
            columns["position_ids"][place] = np.arange(len(encoding))
            begins += len(encoding)
    return {name: torch.from_numpy(values) for name, values in columns.items()}

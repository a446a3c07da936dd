"""Dialogues -> what the model takes: the one place where template, tokenizer and image processor meet.

Training, evaluation and chat all come through here, so they cannot drift apart.

Shapes: B rows of one dialogue each, or of several with packing; S tokens of the longest, N images of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
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
from visualchat.dialogue.template import LABEL_BEHIND, PAPER, PAPER_SYSTEM, SPECIAL, Segment, Template, render
from visualchat.images.decode import decode_image
from visualchat.model.processing_prompts import ProcessingPrompts
from visualchat.model.remote_code import load_without_code
from visualchat.model.vision import load_image_processor
from visualchat.model.vision.pixels import normalised, scaled


def prompt_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The fixed texts that a name stands for.

    `paper`: figure 3; `special`: its headings as special tokens; `label_behind`: labels on both sides of an image;
    `chat`: the tokenizer's own chat format.

    Raises:
        ValueError: The name is unknown, or the tokenizer has no usable chat format.
    """
    if name == "chat":
        return chat_format(tokenizer)
    templates = {"paper": PAPER, "special": SPECIAL, "label_behind": LABEL_BEHIND}
    if name not in templates:
        raise ValueError(f"unknown template {name!r}, expected one of {', '.join(templates)}, chat")
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
        processor: VisualChatProcessor = load_without_code(super().from_pretrained, folder, **keywords)
        return processor

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
        self, dialogues: Sequence[Dialogue], *, padding_side: str = "right", rows: Sequence[int] | None = None
    ) -> BatchFeature:
        """Several dialogues, with or without images, as one padded batch.

        Args:
            dialogues: At least one.
            padding_side: `right` for training, `left` for generation.
            rows: How many of the dialogues, in order, share each row (packing); None for one a row.

        Returns:
            What `pad` gives and, where there is an image, `pixel_values` (N, 3, height, width) with the images row by
            row.

        Raises:
            ValueError: An image cannot be read; the dialogue is named.
        """
        counts = [1] * len(dialogues) if rows is None else list(rows)
        assert sum(counts) == len(dialogues), "every dialogue stands in a row"
        waiting = map(self.encode, dialogues)
        encodings = [[next(waiting) for _ in range(count)] for count in counts]
        inputs: dict[str, Any] = self.pad(encodings, packed=rows is not None, padding_side=padding_side)
        images = [  # one after the other: decoded ones may be huge
            self.scale(decode_image(image, f"{dialogue.id}, image {number}"))
            for dialogue in dialogues
            for number, image in enumerate(dialogue.images, start=1)
        ]
        return BatchFeature(inputs | ({"pixel_values": self.normalise(images)} if images else {}))

    def scale(self, image: Image.Image) -> Tensor:
        """A decoded RGB image at the encoder's size, to be normalised with the others of its batch."""
        return scaled(self.image_processor, image)

    def normalise(self, images: Sequence[Tensor]) -> Tensor:
        """`pixel_values` (N, 3, height, width) of what `scale` gave, at least one."""
        return normalised(self.image_processor, images)

    def pad(
        self, rows: Sequence[Sequence[Encoding]], *, packed: bool = False, padding_side: str = "right", length: int = 0
    ) -> dict[str, Tensor]:
        """Encodings as tensors (B, S), S at least `length`.

        Args:
            rows: The encodings that share each row; one each unless `packed`.
            packed: Whether rows hold several dialogues.
            padding_side: `right` for training, `left` for generation.
            length: The fewest tokens of a padded row.

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids`, `unit_ids` (number of the image that a token is of or
            labels, else -1) and `labels`; with `packed` also `position_ids`, counted from 0 in each dialogue, and
            `segment_ids`, the dialogue's index in its row, -1 at padding.
        """
        columns = _columns(rows, filler_token_id(self.tokenizer), padding_side, length)
        if not packed:
            del columns["position_ids"], columns["segment_ids"]
        return columns

    def prompt(self, dialogues: Sequence[Dialogue]) -> BatchFeature:
        """What `generate` takes to answer the open last turn of each dialogue: a left-padded batch without labels."""
        features = self.batch(dialogues, padding_side="left")
        del features["labels"]
        return features


def _columns(packed: Sequence[Sequence[Encoding]], filler: int, padding_side: str, length: int) -> dict[str, Tensor]:
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
        start, free = (0, longest - missing) if padding_side == "right" else (missing, 0)
        columns["position_ids"][row, free : free + missing] = np.arange(missing)
        for index, encoding in enumerate(encodings):
            span = row, slice(start, start + len(encoding))
            for name in ("input_ids", "mm_token_type_ids", "unit_ids", "labels"):
                columns[name][span] = getattr(encoding, name)
            columns["attention_mask"][span], columns["segment_ids"][span] = 1, index
            columns["position_ids"][span] = np.arange(len(encoding))
            start += len(encoding)
    return {name: torch.from_numpy(values) for name, values in columns.items()}

"""Dialogues -> what the model takes: the one place where template, tokenizer and image processor meet.

Training, evaluation and chat all come through here, so they cannot drift apart.

Shapes: B dialogues, S tokens of the longest, N images of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from visualchat.attention import Modality
from visualchat.dialogue import Dialogue, ImageInput, Turn
from visualchat.encoding import IGNORE_INDEX, Encoding, encode_segments, filler_token_id
from visualchat.images import decode_image
from visualchat.messages import dialogue_from_messages
from visualchat.template import PAPER_SYSTEM, TextSegment, render


class VisualChatProcessor(ProcessorMixin):
    """Tokenizer, image processor and the paper's template as one.

    Args:
        image_processor: Of the vision encoder.
        tokenizer: Of the language model.
        image_seq_length: Tokens an image takes, as in the model's configuration.
        system: The text before the first turn.
        chat_template: Unused; the template is `visualchat.template.render`.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_seq_length: int = 256,
        system: str = PAPER_SYSTEM,
        chat_template: str | None = None,
    ) -> None:
        self.image_seq_length = image_seq_length
        self.system = system
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_backbones(
        cls, vision: str | Path, language: str | Path, *, image_seq_length: int, system: str = PAPER_SYSTEM
    ) -> VisualChatProcessor:
        """The processor of `VisualChatForConditionalGeneration.from_backbones` with the same backbones."""
        image_processor = AutoImageProcessor.from_pretrained(vision)
        return cls(image_processor, AutoTokenizer.from_pretrained(language), image_seq_length, system)

    def encode(self, dialogue: Dialogue) -> Encoding:
        """One dialogue as token ids, labels and modality ids."""
        segments = render(dialogue, self.system)
        return encode_segments(segments, self.tokenizer, image_seq_length=self.image_seq_length)

    def batch(
        self, dialogues: Sequence[Dialogue], *, padding_side: str = "right", max_length: int | None = None
    ) -> BatchFeature:
        """Several dialogues, with or without images, as one padded batch.

        Args:
            dialogues: At least one.
            padding_side: `right` for training, `left` for generation.
            max_length: The most tokens a dialogue may have; None for no limit.

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids` and `labels`, each (B, S), and, where there is an image,
            `pixel_values` (N, 3, height, width) with the images row by row.

        Raises:
            ValueError: A dialogue is too long, or an image cannot be read; the dialogue is named.
        """
        encodings = [self.encode(dialogue) for dialogue in dialogues]
        for dialogue, encoding in zip(dialogues, encodings, strict=True):
            if max_length is not None and len(encoding) > max_length:
                raise ValueError(
                    f"{dialogue.id}: {len(encoding)} tokens ({len(dialogue.turns)} turns, "
                    f"{len(dialogue.images)} images) exceed the limit of {max_length}"
                )
        padding = {
            "input_ids": filler_token_id(self.tokenizer),
            "attention_mask": 0,
            "mm_token_type_ids": int(Modality.TEXT),
            "labels": IGNORE_INDEX,
        }
        longest = max(len(encoding) for encoding in encodings)
        columns: dict[str, list[list[int]]] = {name: [] for name in padding}
        for encoding in encodings:
            row = {
                "input_ids": encoding.input_ids,
                "attention_mask": [1] * len(encoding),
                "mm_token_type_ids": encoding.mm_token_type_ids,
                "labels": encoding.labels,
            }
            for name, filler in padding.items():
                surplus = [filler] * (longest - len(encoding))
                columns[name].append(row[name] + surplus if padding_side == "right" else surplus + row[name])
        features: dict[str, Any] = {name: torch.tensor(rows) for name, rows in columns.items()}
        images = [
            decode_image(image, f"{dialogue.id}, image {number}")
            for dialogue in dialogues
            for number, image in enumerate(dialogue.images, start=1)
        ]
        if images:
            features["pixel_values"] = self.image_processor(images=images, return_tensors="pt")["pixel_values"]
        return BatchFeature(features)

    def prompt(self, dialogues: Sequence[Dialogue]) -> BatchFeature:
        """What `generate` takes to answer the open last turn of each dialogue: a left-padded batch without labels."""
        features = self.batch(dialogues, padding_side="left")
        del features["labels"]
        return features

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput] | None = None,
        text: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """One question about some images (or about none), ready for `generate`; several questions without images.

        For dialogues of several turns use `apply_chat_template` or `prompt`.

        Raises:
            ValueError: There is no text, or several texts come with images.
        """
        if text is None:
            raise ValueError("processor(images=..., text=...) needs a text, found None")
        texts = [text] if isinstance(text, str) else list(text)
        given: list[ImageInput] = [images] if isinstance(images, ImageInput) else list(images or ())
        if given and len(texts) != 1:
            raise ValueError(f"images go with exactly one text, found {len(texts)} texts; use apply_chat_template")
        return self.prompt([Dialogue((Turn.ask(question, given),), id="prompt") for question in texts])

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        tokenize: bool = True,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Messages in Hugging Face's chat format (`visualchat.messages`), one conversation or several, for `generate`.

        Args:
            conversation: Messages; the last is the user's.
            tokenize: False gives the prompt as text, with "<image>" at each image slot.
            return_dict: False gives the token ids alone.
            **kwargs: transformers' further arguments, which this template does not need.
        """
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        conversations: Any = conversation if several else [conversation]
        dialogues = [dialogue_from_messages(c, f"conversation {n}") for n, c in enumerate(conversations, start=1)]
        if not tokenize:
            texts = [
                "".join(s.text if isinstance(s, TextSegment) else "<image>" for s in render(d, self.system))
                for d in dialogues
            ]
            return texts if several else texts[0]
        features = self.prompt(dialogues)
        return features if return_dict else features["input_ids"]

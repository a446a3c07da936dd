"""What transformers' users call a processor by: texts with images, and messages; both become prompts for `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from visualchat.dialogue import Dialogue, Turn
from visualchat.dialogue.encoding import IGNORE_INDEX, Encoding, end_token_ids
from visualchat.dialogue.messages import dialogue_from_messages
from visualchat.dialogue.prompt_text import SLOT, is_prompt, prompt_text, question_content, read_prompt
from visualchat.dialogue.template import Template
from visualchat.images import ImageInput
from visualchat.images.decode import decode_image
from visualchat.images.inputs import image_input, is_image_input
from visualchat.model.processing_options import ProcessingOptions, processing_options

Prompt = tuple[Dialogue, bool]
"""A dialogue, and whether its last answer is unfinished, to be continued."""


class ProcessingPrompts:
    """`processor(images=..., text=...)` and `processor.apply_chat_template(messages)`."""

    tokenizer: Any
    image_processor: Any
    system: str
    _texts: Template

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prompts for `generate`, one a text.

        A text is a question, whose images stand above it or where it says "<image>"; or a prompt that
        `apply_chat_template(tokenize=False)` gave, which becomes the same tokens as the messages themselves.

        Args:
            images: One image or several, as `visualchat.images.inputs.image_input` reads them; with several texts a
                list for each, or one list for all in the order of their "<image>".
            text: One text or several; None for the images alone.
            videos: There are none.
            audio: There is none.
            **kwargs: The fields of `visualchat.model.processing_options.ProcessingOptions`, and keywords of the image
                processor.

        Returns:
            The inputs of `generate`, padded on the left, as torch tensors unless asked otherwise.

        Raises:
            ValueError: Texts and images do not fit together, or something cannot be read or honoured.
            TypeError: A keyword is unknown.
        """
        call = f"{type(self).__name__}()"
        options = self._options({"videos": videos, "audio": audio, **kwargs}, call)
        if text is None:
            if images is None:
                raise ValueError(f"{call} needs text or images, found neither")
            return BatchFeature(self._pixels(_flat(images), options), options.return_tensors)
        texts = [text] if isinstance(text, str) else list(text)
        if not all(isinstance(one, str) for one in texts):
            raise ValueError(f"{call}: text must be a text or a list of texts, found {texts!r:.100}")
        prompts = [
            self._read(one, shown, f"text {number}" if len(texts) > 1 else "text")
            for number, (one, shown) in enumerate(zip(texts, _by_text(images, texts), strict=True), start=1)
        ]
        return self._inputs(prompts, options)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        tokenize: bool = True,
        return_dict: bool = True,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        return_tensors: str | None = "auto",
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Messages in Hugging Face's chat format (`visualchat.dialogue.messages`), one conversation or several.

        Args:
            conversation: Messages; the last is the user's, to be answered, or the assistant's.
            tokenize: False gives the prompt as text, with "<image>" at each image slot, which `__call__` reads.
            return_dict: False gives the token ids alone.
            add_generation_prompt: Said by the last message: a user's is to be answered.
            continue_final_message: Leave the assistant's last message unfinished.
            return_assistant_tokens_mask: Whether to tell by `assistant_masks` which tokens are the assistant's.
            return_tensors: As in `visualchat.model.processing_options.ProcessingOptions`.
            processor_kwargs: Further options, as `kwargs`.
            **kwargs: As in `__call__`.

        Raises:
            ValueError: A message cannot be read, or an argument cannot be honoured.
            TypeError: A keyword is unknown.
        """
        call = f"{type(self).__name__}.apply_chat_template()"
        tensors = {} if return_tensors == "auto" else {"return_tensors": return_tensors}
        options = self._options({**(processor_kwargs or {}), **kwargs, **tensors}, call)
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        conversations: Any = conversation if several else [conversation]
        prompts = []
        for number, messages in enumerate(conversations, start=1):
            dialogue = dialogue_from_messages(messages, f"conversation {number}")
            _check_end(dialogue, add_generation_prompt, continue_final_message)
            prompts.append((dialogue, continue_final_message))
        if not tokenize:
            texts = [self._text(*prompt) for prompt in prompts]
            return texts if several else texts[0]
        features = self._inputs(prompts, options, masks=return_assistant_tokens_mask)
        return features if return_dict else features["input_ids"]

    def _options(self, keywords: Mapping[str, Any], call: str) -> ProcessingOptions:
        names = getattr(self.image_processor, "valid_kwargs", None)
        return processing_options(keywords, getattr(names, "__annotations__", {}), call)

    @property
    def _end(self) -> str:
        """What ends an answer, as text."""
        return self.tokenizer.decode(end_token_ids(self.tokenizer, self._texts), skip_special_tokens=False)

    def _text(self, dialogue: Dialogue, unfinished: bool) -> str:
        """The prompt as one text.

        Raises:
            ValueError: Words of the dialogue spell a mark of the template, so that the text would be read differently.
        """
        segments = self.render(dialogue)  # type: ignore[attr-defined]
        text = prompt_text(segments, self._end, unfinished)
        try:
            again, _ = self._read(text, list(dialogue.images), dialogue.id)
            same = self.render(again) == segments  # type: ignore[attr-defined]
        except ValueError:
            same = False
        if not same:
            raise ValueError(
                f"{dialogue.id}: as one text it would be read differently, because its words spell {SLOT!r} or a "
                "heading of the template; use tokenize=True"
            )
        return text

    def _read(self, text: str, images: Sequence[Any], name: str) -> Prompt:
        """A text and its images as a dialogue."""
        shown: list[ImageInput] = [image_input(image, f"{name}, image {n}") for n, image in enumerate(images, start=1)]
        if is_prompt(text, self._texts):
            return read_prompt(text, shown, template=self._texts, system=self.system, end=self._end, name=name)
        return Dialogue((Turn(question_content(text, shown, name)),), id=name), False

    def _inputs(self, prompts: Sequence[Prompt], options: ProcessingOptions, masks: bool = False) -> BatchFeature:
        """The model's inputs of several prompts."""
        encodings = [self._encoded(dialogue, unfinished, options) for dialogue, unfinished in prompts]
        for (dialogue, _), encoding in zip(prompts, encodings, strict=True):
            if options.max_length is not None and len(encoding) > options.max_length:
                raise ValueError(f"{dialogue.id}: {len(encoding)} tokens exceed max_length={options.max_length}")
        filled = (options.max_length or 0) if options.padding == "max_length" else 0
        columns: dict[str, Any] = self.pad(  # type: ignore[attr-defined]
            [[encoding] for encoding in encodings], padding_side=options.padding_side, length=filled
        )
        labels = columns.pop("labels")
        if masks:
            columns["assistant_masks"] = (labels != IGNORE_INDEX).long()
        if options.padding is None:
            columns = _unpadded(columns, [len(encoding) for encoding in encodings], options)
        images = [image for dialogue, _ in prompts for image in dialogue.images]
        data = columns | (self._pixels(images, options) if images else {})
        return BatchFeature({name: _as(value, options.return_tensors) for name, value in data.items()})

    def _encoded(self, dialogue: Dialogue, unfinished: bool, options: ProcessingOptions) -> Encoding:
        encoding: Encoding = self.encode(dialogue)  # type: ignore[attr-defined]
        start = 0
        if not options.add_special_tokens and self._texts.add_bos and self.tokenizer.bos_token_id is not None:
            start = 1
        stop = len(encoding) - (len(end_token_ids(self.tokenizer, self._texts)) if unfinished else 0)
        return _slice(encoding, start, stop)

    def _pixels(self, images: Sequence[Any], options: ProcessingOptions) -> dict[str, Any]:
        """The prepared images, (N, 3, height, width)."""
        decoded = [
            decode_image(image_input(image, f"image {number}"), f"image {number}")
            for number, image in enumerate(images, start=1)
        ]
        prepared = self.image_processor(images=decoded, return_tensors="pt", **options.images)
        return {"pixel_values": prepared["pixel_values"]}


def _check_end(dialogue: Dialogue, add_generation_prompt: bool | None, continues: bool) -> None:
    """Raise a ValueError unless the last message is of the role that the arguments speak of."""
    answered = dialogue.turns[-1].answer is not None
    if continues and not answered:
        raise ValueError(f"{dialogue.id}: continue_final_message needs an assistant's message at the end")
    if continues and add_generation_prompt:
        raise ValueError("continue_final_message and add_generation_prompt exclude each other")
    if not answered and add_generation_prompt is False:
        raise ValueError(
            f"{dialogue.id}: a user's message at the end is to be answered, add_generation_prompt=False cannot be "
            "honoured; leave it out"
        )


def _flat(images: Any) -> list[Any]:
    return [images] if is_image_input(images) else list(images)


def _by_text(images: Any, texts: Sequence[str]) -> list[list[Any]]:
    """The images of each text.

    Raises:
        ValueError: It is not clear whose they are.
    """
    entries = [] if images is None else _flat(images)
    if any(not is_image_input(one) for one in entries):
        rows = [[] if one is None else _flat(one) for one in entries]
        if len(rows) != len(texts):
            raise ValueError(f"{len(rows)} lists of images are given for {len(texts)} texts")
        return rows
    if len(texts) == 1:
        return [entries]
    counts = [text.count(SLOT) for text in texts]
    if sum(counts) != len(entries):
        raise ValueError(
            f"{len(texts)} texts say {SLOT} {sum(counts)} times and {len(entries)} images are given: give a list of "
            f"images for each text, or as many {SLOT} as images"
        )
    rest = iter(entries)
    return [[next(rest) for _ in range(count)] for count in counts]


def _slice(encoding: Encoding, start: int, stop: int) -> Encoding:
    names = ("input_ids", "labels", "mm_token_type_ids", "unit_ids")
    return replace(encoding, **{name: getattr(encoding, name)[start:stop] for name in names})


def _unpadded(columns: dict[str, Any], lengths: list[int], options: ProcessingOptions) -> dict[str, Any]:
    """The columns as rows of their own lengths.

    Raises:
        ValueError: They are asked for as tensors and differ in length.
    """
    if len(set(lengths)) == 1:
        return columns
    if options.return_tensors is not None:
        raise ValueError(f"rows of {', '.join(map(str, lengths))} tokens make no tensor: padding must be True")
    right, longest = options.padding_side == "right", max(lengths)
    return {
        name: [row[:n] if right else row[longest - n :] for row, n in zip(column, lengths, strict=True)]
        for name, column in columns.items()
    }


def _as(values: Any, tensors: str | None) -> Any:
    """A column as torch tensor, numpy array, or lists."""
    if isinstance(values, list):
        return [row.tolist() if isinstance(row, Tensor) else row for row in values]
    if tensors == "pt" or not isinstance(values, torch.Tensor):
        return values
    return values.numpy() if tensors == "np" else values.tolist()

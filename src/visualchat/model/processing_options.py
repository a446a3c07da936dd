"""The keywords that people give transformers' processors: read here, each honoured or refused, none dropped."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

from transformers import GenerationConfig, GenerationMixin

TENSORS = ("pt", "np", None)
GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs")
ABSENT = (
    "videos",
    "video",
    "audio",
    "audios",
    "tools",
    "documents",
    "chat_template",
    "truncation",
    "return_overflowing_tokens",
)
"""What a processor of this package cannot honour, but may be told that there is none of."""
ALWAYS = ("return_attention_mask", "return_mm_token_type_ids", "sanitize_control_tokens", "return_dict")
"""What is so in any case."""
REASONS = {
    "chat_template": "the template is a property of the processor, set when it is built",
    "tools": "this template has no tools",
    "documents": "this template has no documents",
    "truncation": "a cut prompt would lose its images or its question; shorten the conversation",
}


_GENERATION = {*GenerationConfig().to_dict(), *inspect.signature(GenerationMixin.generate).parameters}
"""Settings of `generate`; transformers' pipeline hands those that it does not know itself to the processor."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessingOptions:
    """How a batch of prompts is to look.

    Attributes:
        return_tensors: `pt`, `np`, or None for lists.
        padding: `longest`, `max_length`, or None for rows of unequal length.
        padding_side: `left`, as generation needs it, or `right`.
        max_length: The most tokens a row may have; what `padding="max_length"` fills it to.
        add_special_tokens: Whether the tokenizer's beginning-of-sequence token opens a row.
        images: Keywords of the image processor.
    """

    return_tensors: str | None = "pt"
    padding: str | None = "longest"
    padding_side: str = "left"
    max_length: int | None = None
    add_special_tokens: bool = True
    images: Mapping[str, Any] = field(default_factory=dict)


def processing_options(keywords: Mapping[str, Any], image_names: Collection[str], call: str) -> ProcessingOptions:
    """The options among keywords; None and empty lists of what is not there say nothing.

    Raises:
        TypeError: A keyword is unknown.
        ValueError: One cannot be honoured.
    """
    flat: dict[str, Any] = {name: value for name, value in keywords.items() if name not in GROUPS}
    images: dict[str, Any] = {}
    for group in GROUPS:
        for name, value in (keywords.get(group) or {}).items():
            if name in flat and group != "common_kwargs":
                raise ValueError(f"{call}: {name} is given twice, by itself and in {group}")
            (images if group == "images_kwargs" else flat)[name] = value
    tensors = flat.pop("return_tensors", "pt")
    images.pop("return_tensors", None)
    flat = {name: value for name, value in flat.items() if value is not None}
    for name in ABSENT:
        value = flat.pop(name, None)
        absent = value is None or value is False or (isinstance(value, Sized) and not len(value))
        if not absent and not (isinstance(value, str) and value == "do_not_truncate"):
            reason = REASONS.get(name, "text and images are read")
            raise ValueError(f"{call}: {name}={' '.join(repr(value).split()):.60} cannot be honoured: {reason}")
    for name in ALWAYS:
        if flat.pop(name, True) is False and name != "sanitize_control_tokens":
            raise ValueError(f"{call}: {name}=False cannot be honoured: the model needs it")
    chosen = {name: flat.pop(name) for name in ("padding_side", "max_length", "add_special_tokens") if name in flat}
    padding = _padding(flat.pop("padding", True), chosen.get("max_length"), call)
    images |= {name: flat.pop(name) for name in list(flat) if name in image_names}
    if idle := sorted(name for name in flat if name in _GENERATION):
        flat = {name: value for name, value in flat.items() if name not in idle}
        logger.warning("%s: %s belong to generate and do nothing here; a pipeline takes generate_kwargs", call, idle)
    if flat:
        raise TypeError(f"{call} got unexpected keyword arguments: {', '.join(sorted(flat))}")
    if tensors not in TENSORS:
        raise ValueError(f"{call}: return_tensors={tensors!r}, expected 'pt', 'np' or None")
    if chosen.get("padding_side", "left") not in ("left", "right"):
        raise ValueError(f"{call}: padding_side={chosen['padding_side']!r}, expected 'left' or 'right'")
    return ProcessingOptions(tensors, padding, images=images, **chosen)


def _padding(padding: Any, max_length: int | None, call: str) -> str | None:
    choice = {True: "longest", False: None, "do_not_pad": None}.get(padding, padding)
    if choice not in ("longest", "max_length", None):
        raise ValueError(f"{call}: padding={padding!r}, expected True, False, 'longest' or 'max_length'")
    if choice == "max_length" and max_length is None:
        raise ValueError(f"{call}: padding='max_length' needs max_length")
    return choice

"""The model's parameters by part: whose they are, how many, and what they take; for optimizer, planner and tables."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor, nn

from visualchat.attention.cross import NAME as CROSS_ATTENTION
from visualchat.model.modeling_visualchat import VisualChatForConditionalGeneration


class Part(StrEnum):
    """A part of the model; its value is how it is printed."""

    VISION = "vision encoder"
    PROJECTOR = "projector"
    IMAGE_NUMBERS = "image numbers"
    EMBEDDING = "token embedding"
    LANGUAGE = "language model"
    HEAD = "language head"
    CROSS_ATTENTION = "cross-attention"
    ADAPTERS = "adapters"

    @property
    def is_new(self) -> bool:
        """Whether no pretrained model brings it."""
        return self in (Part.PROJECTOR, Part.IMAGE_NUMBERS, Part.CROSS_ATTENTION, Part.ADAPTERS)


_MODULES = {
    "vision_tower": Part.VISION,
    "multi_modal_projector": Part.PROJECTOR,
    "image_numbers": Part.IMAGE_NUMBERS,
    "language_model": Part.LANGUAGE,
}
"""The model's own modules; what has a part of its own inside them is told first."""


@dataclass(frozen=True)
class PartSize:
    """What a part of the model takes.

    Attributes:
        part: Which.
        parameters: How many it has.
        trainable: How many of them train.
        dtypes: In which its parameters are held.
        bytes: What they take.
        trainable_bytes: What those take that train.
    """

    part: Part
    parameters: int
    trainable: int
    dtypes: tuple[str, ...]
    bytes: int = 0
    trainable_bytes: int = 0


def parameters_by_part(model: VisualChatForConditionalGeneration) -> dict[Part, list[nn.Parameter]]:
    """The parameters of each part that the model has, in the order in which it has them."""
    embedding = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    head = {id(parameter) for parameter in model.get_output_embeddings().parameters()}
    parts: dict[Part, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            part = Part.ADAPTERS
        elif f".{CROSS_ATTENTION}." in name:
            part = Part.CROSS_ATTENTION
        elif id(parameter) in embedding:
            part = Part.EMBEDDING
        elif id(parameter) in head:
            part = Part.HEAD
        else:
            part = _MODULES[name.partition(".")[0]]
        parts[part].append(parameter)
    return parts


def part_sizes(model: VisualChatForConditionalGeneration) -> list[PartSize]:
    """The sizes of the model's parts, as in `parameters_by_part`.

    Counts are those of the whole model, also where ranks hold pieces of it or weights are quantized.
    """
    return [
        PartSize(
            part,
            sum(map(count, parameters)),
            sum(count(p) for p in parameters if p.requires_grad),
            tuple(sorted({_dtype(p) for p in parameters})),
            sum(p.nbytes for p in parameters),
            sum(p.nbytes for p in parameters if p.requires_grad),
        )
        for part, parameters in parameters_by_part(model).items()
    ]


def count(parameter: Tensor) -> int:
    """The elements of a parameter as the model computes with it: of all ranks together, unpacked from 4 bits."""
    if (state := getattr(parameter, "quant_state", None)) is not None:
        return int(state.shape.numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _dtype(parameter: Tensor) -> str:
    state = getattr(parameter, "quant_state", None)
    return str(parameter.dtype).removeprefix("torch.") if state is None else str(state.quant_type)

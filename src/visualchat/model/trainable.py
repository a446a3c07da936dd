"""What trains (arXiv 2309.14327, sections 4.1 and 4.3): by default projector and token embedding, no backbone.

Low-rank adapters (LoRA, arXiv 2106.09685, by peft) can stand beside the linear layers of either backbone, also of a
quantized one (arXiv 2305.14314); or a backbone trains as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from visualchat.attention import GatedCrossAttention
from visualchat.attention.cross import NAME as CROSS_ATTENTION
from visualchat.model.modeling_visualchat import VisualChatForConditionalGeneration

Backbone = Literal["frozen", "lora", "full"]


@dataclass(frozen=True)
class Trainable:
    """What trains.

    Attributes:
        projector: The projector, and the vectors of images' numbers where the model has them.
        embedding: The token embedding.
        vision: The vision encoder: `frozen`, `lora` or `full`.
        language: The language model, likewise; `full` includes head and token embedding.
        lora_rank: Of the adapters; the published code's results have 128.
        lora_alpha: What an adapter adds is scaled by alpha / rank.
        lora_dropout: Of an adapter's input.

    Raises:
        ValueError: A choice is unknown, or nothing trains.
    """

    projector: bool = True
    embedding: bool = True
    vision: Backbone = "frozen"
    language: Backbone = "frozen"
    lora_rank: int = 128
    lora_alpha: float = 128.0
    lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vision", "language"):
            if (found := getattr(self, name)) not in get_args(Backbone):
                raise ValueError(f"trainable.{name}={found!r}, expected one of {', '.join(get_args(Backbone))}")
        if not (self.projector or self.embedding or self.vision != "frozen" or self.language != "frozen"):
            raise ValueError("nothing trains: projector and embedding are off and both backbones frozen")


def set_trainable(model: VisualChatForConditionalGeneration, trainable: Trainable | None = None) -> None:
    """Let exactly what `trainable` says require gradients; adapters are added where it asks for them.

    Gated cross-attention layers, which no base brings, train in any case.

    Raises:
        ValueError: Embedding and language head share one weight, so that training one would move the other; or a
            quantized language model is to train as a whole.
    """
    trainable = trainable or Trainable()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight is head.weight:
        raise ValueError(
            "token embedding and language head are tied: the frozen head would move with the trained embedding; "
            "assemble the model with VisualChatForConditionalGeneration.from_backbones, which unties them"
        )
    if trainable.language == "full" and getattr(model.language_model, "is_quantized", False):
        raise ValueError("a quantized language model is frozen: trainable.language must be frozen or lora, found full")
    model.requires_grad_(False)
    for part, choice in ((model.vision_tower, trainable.vision), (model.language_model, trainable.language)):
        if choice == "lora":
            _add_adapters(part, trainable)
        elif choice == "full":
            part.requires_grad_(True)
    model.multi_modal_projector.requires_grad_(trainable.projector)
    if model.image_numbers is not None:
        model.image_numbers.requires_grad_(trainable.projector)
    embedding.requires_grad_(trainable.embedding or trainable.language == "full")
    for module in model.modules():
        if isinstance(module, GatedCrossAttention):  # new in the model, so always
            module.requires_grad_(True)


def _add_adapters(part: nn.Module, trainable: Trainable) -> None:
    """Give every linear layer of a backbone but the head a low-rank adapter, which alone requires gradients."""
    from peft import LoraConfig, inject_adapter_in_model

    crossing = any(isinstance(module, GatedCrossAttention) for module in part.modules())
    settings = LoraConfig(
        r=trainable.lora_rank,
        lora_alpha=trainable.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=trainable.lora_dropout,
        target_modules="all-linear",
        exclude_modules=rf".*\.{CROSS_ATTENTION}\..*" if crossing else None,  # they train themselves
    )
    inject_adapter_in_model(settings, part)


def merge_adapters(model: VisualChatForConditionalGeneration) -> VisualChatForConditionalGeneration:
    """Add every adapter to the layer it stands beside, in place, so that an ordinary model is left; returns it."""
    layers = [(name, m) for name, m in model.named_modules() if hasattr(m, "get_base_layer") and hasattr(m, "merge")]
    for name, layer in layers:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    return model


@dataclass(frozen=True)
class Part:
    """One line of the table of what trains.

    Attributes:
        name: Of the part.
        parameters: How many it has.
        trainable: How many of them train.
        dtypes: In which its parameters are held.
        bytes: What they take.
        trainable_bytes: What those take that train.
    """

    name: str
    parameters: int
    trainable: int
    dtypes: tuple[str, ...]
    bytes: int = 0
    trainable_bytes: int = 0


NEW_PARTS = ("projector", "image numbers", "adapters", "cross-attention")
"""Parts that no pretrained model brings."""


def parameters_by_part(model: VisualChatForConditionalGeneration) -> dict[str, list[nn.Parameter]]:
    """The parameters of encoder, projector, token embedding, language model and head, adapters; what is there."""
    embedding, head = {id(p) for p in model.get_input_embeddings().parameters()}, model.get_output_embeddings()
    heads = {id(p) for p in head.parameters()}
    found: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            found["adapters"].append(parameter)
        elif f".{CROSS_ATTENTION}." in name:
            found["cross-attention"].append(parameter)
        elif id(parameter) in embedding:
            found["token embedding"].append(parameter)
        elif id(parameter) in heads:
            found["language head"].append(parameter)
        else:
            found[_TITLES[name.partition(".")[0]]].append(parameter)
    return found


def parts(model: VisualChatForConditionalGeneration) -> list[Part]:
    """The model's parts, as in `parameters_by_part`.

    Counts are those of the whole model, also where ranks hold pieces of it or weights are quantized.
    """
    return [
        Part(
            title,
            sum(map(count, own)),
            sum(count(p) for p in own if p.requires_grad),
            tuple(sorted({_dtype(p) for p in own})),
            sum(p.nbytes for p in own),
            sum(p.nbytes for p in own if p.requires_grad),
        )
        for title, own in parameters_by_part(model).items()
    ]


_TITLES = {
    "vision_tower": "vision encoder",
    "multi_modal_projector": "projector",
    "image_numbers": "image numbers",
    "language_model": "language model",
}


def count(parameter: Tensor) -> int:
    """The elements of a parameter as the model computes with it: of all ranks together, unpacked from 4 bits."""
    if (state := getattr(parameter, "quant_state", None)) is not None:
        return int(state.shape.numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _dtype(parameter: Tensor) -> str:
    state = getattr(parameter, "quant_state", None)
    return str(parameter.dtype).removeprefix("torch.") if state is None else str(state.quant_type)

"""What trains (arXiv 2309.14327, sections 4.1 and 4.3): by default projector and token embedding, no backbone.

Low-rank adapters (LoRA, arXiv 2106.09685, by peft) can stand beside the linear layers of either backbone, also of a
quantized one (arXiv 2305.14314); or a backbone trains as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from visualchat.attention import GatedCrossAttention
from visualchat.attention.cross import NAME as CROSS_ATTENTION
from visualchat.model.image_adapters import act_on_images_alone, acts_on_images_alone
from visualchat.model.modeling_visualchat import VisualChatForConditionalGeneration
from visualchat.model.sharding import whole_state

Backbone = Literal["frozen", "lora", "full"]
LanguageModel = Literal["frozen", "lora", "lora_images", "full"]


@dataclass(frozen=True)
class Trainable:
    """What trains.

    Attributes:
        projector: The projector, and the vectors of images' numbers where the model has them.
        embedding: The token embedding.
        vision: The vision encoder: `frozen`, `lora` or `full`.
        language: The language model, likewise, or `lora_images`: adapters that act on image tokens alone. `full`
            includes head and token embedding.
        lora_rank: Of the adapters; the published code's results have 128.
        lora_alpha: What an adapter adds is scaled by alpha / rank.
        lora_dropout: Of an adapter's input.

    Raises:
        ValueError: A choice is unknown, or nothing trains.
    """

    projector: bool = True
    embedding: bool = True
    vision: Backbone = "frozen"
    language: LanguageModel = "frozen"
    lora_rank: int = 128
    lora_alpha: float = 128.0
    lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (("vision", get_args(Backbone)), ("language", get_args(LanguageModel))):
            if (choice := getattr(self, name)) not in choices:
                raise ValueError(f"trainable.{name}={choice!r}, expected one of {', '.join(choices)}")
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
    if trainable.language == "lora_images" and model.config.images_outside:
        raise ValueError(
            f"attention kind {model.config.attention_kind!r} has no image tokens in the language model, on which "
            "adapters could act: choose model/trainable=lora_language, or a kind with images in the sequence"
        )
    model.requires_grad_(False)
    for part, choice in ((model.vision_tower, trainable.vision), (model.language_model, trainable.language)):
        if choice.startswith("lora"):
            _add_adapters(part, trainable)
        elif choice == "full":
            part.requires_grad_(True)
    if trainable.language == "lora_images":
        model.image_slots = act_on_images_alone(model.language_model)
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

    has_cross_attention = any(isinstance(module, GatedCrossAttention) for module in part.modules())
    settings = LoraConfig(
        r=trainable.lora_rank,
        lora_alpha=trainable.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=trainable.lora_dropout,
        target_modules="all-linear",
        exclude_modules=rf".*\.{CROSS_ATTENTION}\..*" if has_cross_attention else None,  # they train themselves
    )
    inject_adapter_in_model(settings, part)


def merge_adapters(model: VisualChatForConditionalGeneration) -> VisualChatForConditionalGeneration:
    """Add every adapter to the layer it stands beside, in place, so that an ordinary model is left; returns it.

    Raises:
        ValueError: They act on image tokens alone.
    """
    layers = [(name, m) for name, m in model.named_modules() if hasattr(m, "get_base_layer") and hasattr(m, "merge")]
    if any(acts_on_images_alone(layer) for _, layer in layers):
        raise ValueError("adapters that act on image tokens alone cannot be merged: they are kept in a light folder")
    for name, layer in layers:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    return model


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name, detached; in one piece; all ranks must call it together."""
    return whole_state((name, p) for name, p in model.named_parameters() if p.requires_grad)


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold a value that is infinite or not a number."""
    return [name for name, value in state.items() if not value.isfinite().all()]

"""A model without weights, and its sizes: the first step of planning a run before a machine is rented.

The model is built on torch's meta device from the backbones' configurations alone, by the very class that trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, PreTrainedConfig

from visualchat.attention.cross import NAME as CROSS_ATTENTION
from visualchat.model import VisualChatConfig, VisualChatForConditionalGeneration
from visualchat.model.parameters import PartSize, part_sizes
from visualchat.model.remote_code import load_without_code

Architecture = Mapping[str, Any] | str | Path
"""The values of a config.json with its `model_type`, or a folder or Hub name that holds one."""


def backbone_config(architecture: Architecture) -> PreTrainedConfig:
    """The configuration of a backbone.

    Raises:
        ValueError: The model type is missing or unknown to transformers.
    """
    if isinstance(architecture, str | Path):
        config: PreTrainedConfig = load_without_code(AutoConfig.from_pretrained, architecture)
        return config
    values = dict(architecture)
    if "model_type" not in values:
        raise ValueError(f"an architecture needs its model_type, found only {', '.join(values) or 'nothing'}")
    return AutoConfig.for_model(values.pop("model_type"), **values)


def meta_model(
    vision: Architecture, language: Architecture, dtype: torch.dtype, **config: Any
) -> VisualChatForConditionalGeneration:
    """What `VisualChatForConditionalGeneration.from_backbones` makes, without weights.

    Args:
        vision: The encoder, or a model that contains one (CLIP).
        language: The causal language model.
        dtype: Of all weights.
        **config: Further fields of `VisualChatConfig`.
    """
    vision_config = backbone_config(vision)
    text_config = backbone_config(language)
    text_config.tie_word_embeddings = False  # the head is untied from the trained embedding
    joint = VisualChatConfig(
        vision_config=getattr(vision_config, "vision_config", vision_config), text_config=text_config, **config
    )
    with torch.device("meta"):
        return VisualChatForConditionalGeneration(joint).to(dtype)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Sizes:
    """What memory and time depend on.

    Attributes:
        parts: The parameters.
        element: Bytes of an element of the language model's hidden states.
        hidden: Width E of the language model.
        layers: Its layers.
        heads: Its attention heads, and `head_size` of each.
        head_size: D.
        key_heads: Its heads of keys and values.
        feed_forward: Width of its MLPs.
        vocabulary: Tokens of its head.
        layer_bytes: What the largest of its layers takes.
        linear: Weights of linear maps in its layers: each costs 2 FLOPs a token.
        linear_trained: Those of them that train.
        cross_linear: Weights of linear maps in gated cross-attention layers.
        cross_layers: How many such layers there are.
        vision_flops: FLOPs of the vision encoder for one image, forward.
        vision_trained: Weights of linear maps in it that train.
        vision_layers: Its layers.
        vision_hidden: Its inner width.
        vision_feed_forward: Width of its MLPs.
        patches: Tokens inside it for one image.
        projector_linear: Weights of linear maps in the projector.
        image_tokens: Tokens of one image in the language model.
    """

    parts: tuple[PartSize, ...]
    element: int
    hidden: int
    layers: int
    heads: int
    head_size: int
    key_heads: int
    feed_forward: int
    vocabulary: int
    layer_bytes: int
    linear: int
    linear_trained: int
    cross_linear: int
    cross_layers: int
    vision_flops: int
    vision_trained: int
    vision_layers: int
    vision_hidden: int
    vision_feed_forward: int
    patches: int
    projector_linear: int
    image_tokens: int

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        return sum(part.bytes for part in self.parts)

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def trained(self) -> int:
        """How many parameters train."""
        return sum(part.trainable for part in self.parts)

    @property
    def trained_bytes(self) -> int:
        return sum(part.trainable_bytes for part in self.parts)


def sizes_of(model: VisualChatForConditionalGeneration) -> Sizes:
    """The sizes of a model, on any device; LoRA and gated cross-attention included."""
    text, vision = model.language_model.config, model.vision_tower.config
    layers = model.language_model.get_decoder().layers
    linear, linear_trained = _linear(layers, without=CROSS_ATTENTION)
    every, _ = _linear(layers)
    heads = text.num_attention_heads
    side = vision.image_size if isinstance(vision.image_size, int) else max(vision.image_size)
    return Sizes(
        parts=tuple(part_sizes(model)),
        element=model.get_output_embeddings().weight.element_size(),
        hidden=text.hidden_size,
        layers=len(layers),
        heads=heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        key_heads=getattr(text, "num_key_value_heads", None) or heads,
        feed_forward=text.intermediate_size,
        vocabulary=model.get_output_embeddings().weight.shape[0],
        layer_bytes=max(sum(p.nbytes for p in layer.parameters()) for layer in layers),
        linear=linear,
        linear_trained=linear_trained,
        cross_linear=every - linear,
        cross_layers=sum(hasattr(layer, CROSS_ATTENTION) for layer in layers),
        vision_flops=vision_flops(model),
        vision_trained=_linear(model.vision_tower)[1],
        vision_layers=vision.num_hidden_layers,
        vision_hidden=getattr(vision, "width", vision.hidden_size),
        vision_feed_forward=getattr(vision, "intermediate_size", 4 * vision.hidden_size),
        patches=(side // vision.patch_size) ** 2,
        projector_linear=_linear(model.multi_modal_projector)[0],
        image_tokens=model.config.image_seq_length,
    )


def vision_flops(model: VisualChatForConditionalGeneration) -> int:
    """FLOPs of the vision encoder for one image, forward; counted, also on the meta device."""
    # the plain form of attention, which the counter knows on every device
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.vision_features(model.blank_image())
    return counter.get_total_flops()


def _linear(module: nn.Module, without: str | None = None) -> tuple[int, int]:
    """Weights of the linear maps and convolutions below a module, and how many of them train."""
    weights = [
        child.weight
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear | nn.Conv2d) and not (without and without in name)
    ]
    return sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.requires_grad)

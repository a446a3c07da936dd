"""Configuration of a VisualChat model: two backbones, what joins them, and how the language model attends."""

from __future__ import annotations

from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from visualchat.attention import KINDS, implementation_name
from visualchat.attention.functional import resolve_implementation
from visualchat.attention.kinds import check_name
from visualchat.model.image_numbers import STARTS
from visualchat.model.projector import PROJECTORS
from visualchat.model.vision import QwenVLVisionConfig

MODEL_KINDS = (*KINDS, "cross")
"""How a model may attend: the family, and gated cross-attention to images outside the sequence."""


def check_image_numbers(choice: str) -> None:
    """Raise a ValueError unless the choice is one of `STARTS`."""
    if choice not in STARTS:
        raise ValueError(f"unknown image_numbers {choice!r}, expected one of {', '.join(STARTS)}")


class VisualChatConfig(PreTrainedConfig):
    """A vision encoder, a projector and a causal language model as one model.

    Args:
        vision_config: Configuration of any vision encoder of transformers; CLIP's by default.
        text_config: Configuration of any causal language model of transformers; LLaMA's by default.
        attention_kind: How image and text tokens attend in the language model: a name in `visualchat.attention.KINDS`,
            or `cross` for causal attention over text and gated cross-attention to images outside the sequence.
        attention_implementation: `auto`, `sdpa`, `eager` or `flex`, as in `visualchat.attention.multimodal_attention`.
        cross_attention_every: With `cross`: a gated layer stands before n-th layer, n this number.
        image_numbers: Whether image tokens are told their image's number by a vector added to them: `none`; `learned`,
            which starts at zero; `label`, which starts at the mean embedding of the label's words.
        image_number_limit: The largest number that has a vector.
        projector_type: A name in `visualchat.model.projector.PROJECTORS`.
        image_seq_length: Tokens an image takes in the language model. Image slots are known by `mm_token_type_ids`
            alone, so the vocabulary needs no image token.
        vision_feature_layer: Which hidden states of the encoder are the features: an index as in LLaVA, or None for its
            `last_hidden_state`.
        vision_feature_select_strategy: `full` keeps every token of the encoder, `default` leaves out the first (class)
            one.

    Raises:
        ValueError: A name is unknown, or tokens of Qwen-VL's encoder are chosen that it does not have.
    """

    model_type = "visualchat"
    sub_configs_defaults = {  # noqa: RUF012 (transformers' own form)
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    attention_kind: str = "mmca"
    attention_implementation: str = "auto"
    cross_attention_every: int = 4
    image_numbers: str = "none"
    image_number_limit: int = 64
    projector_type: str = "linear"
    image_seq_length: int = 256
    vision_feature_layer: int | None = None
    vision_feature_select_strategy: Literal["default", "full"] = "full"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_name(self.attention_kind, MODEL_KINDS)
        resolve_implementation(self.attention_implementation)
        check_image_numbers(self.image_numbers)
        if self.image_number_limit < 1:
            raise ValueError(f"image_number_limit must be at least 1, found {self.image_number_limit}")
        if self.projector_type not in PROJECTORS:
            raise ValueError(f"unknown projector {self.projector_type!r}, expected one of {', '.join(PROJECTORS)}")
        if isinstance(self.vision_config, QwenVLVisionConfig) and (
            self.vision_feature_layer is not None or self.vision_feature_select_strategy != "full"
        ):
            raise ValueError(
                "Qwen-VL's encoder gives its resampled tokens only, none of them a class token: expected "
                "vision_feature_layer null and vision_feature_select_strategy 'full', found "
                f"{self.vision_feature_layer!r} and {self.vision_feature_select_strategy!r}"
            )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: what is saved names its code already, and no file of this package is to be copied beside it."""

    @property
    def images_outside(self) -> bool:
        """Whether images stand outside the sequence, where gated cross-attention layers read them."""
        return self.attention_kind == "cross"

    @property
    def decoder_kind(self) -> str:
        """How the language model's own layers attend: they are causal where images stand outside."""
        return "causal" if self.images_outside else self.attention_kind

    @property
    def decoder_attention(self) -> str:
        """The language model's `attn_implementation`."""
        return implementation_name(self.decoder_kind, self.attention_implementation)

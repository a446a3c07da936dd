"""Configuration of a VisualChat model: two backbones, what joins them, and how the language model attends."""

from __future__ import annotations

from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from visualchat.attention import KINDS, AttentionKind, EarlyLayers, implementation_name
from visualchat.attention.functional import resolve_implementation
from visualchat.attention.kinds import check_name
from visualchat.model.image_numbers import STARTS
from visualchat.model.projector import PROJECTORS
from visualchat.model.vision import QwenVLVisionConfig

MODEL_KINDS = (*KINDS, "cross")
"""How a model may attend: the family, and gated cross-attention to images outside the sequence."""


ATTENTION = {
    "attention_kind": "kind",
    "early_attention_kind": "early_kind",
    "early_attention_share": "early_share",
    "image_numbers": "image_numbers",
    "image_positions": "image_positions",
}
"""Fields that say how a model attends, which what it learnt depends on -> their names in `conf/attention`."""

POSITIONS = ("running", "shared")
"""Where image tokens stand: in the order of the row, or all at one place."""


def check_choice(name: str, choice: str, known: tuple[str, ...]) -> None:
    """Raise a ValueError unless the choice is a known one."""
    if choice not in known:
        raise ValueError(f"unknown {name} {choice!r}, expected one of {', '.join(known)}")


class VisualChatConfig(PreTrainedConfig):
    """A vision encoder, a projector and a causal language model as one model.

    Args:
        vision_config: Configuration of any vision encoder of transformers; CLIP's by default.
        text_config: Configuration of any causal language model of transformers; LLaMA's by default.
        attention_kind: How image and text tokens attend in the language model: a name in `visualchat.attention.KINDS`,
            or `cross` for causal attention over text and gated cross-attention to images outside the sequence.
        attention_implementation: `auto`, `sdpa`, `eager` or `flex`, as in `visualchat.attention.multimodal_attention`.
        early_attention_kind: How they attend in its first layers, a name in `visualchat.attention.KINDS`; None where
            all layers attend alike.
        early_attention_share: The first layers' share of all, rounded to whole layers.
        cross_attention_every: With `cross`: a gated layer stands before n-th layer, n this number.
        image_numbers: Whether image tokens are told their image's number by a vector added to them: `none`; `learned`,
            which starts at zero; `label`, which starts at the mean embedding of the label's words.
        image_positions: Where image tokens stand for rotary embedding: `running`, in the order of the row, or `shared`,
            all at 0 while text is counted alone, so that all images are at one distance from a text token.
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
    early_attention_kind: str | None = None
    early_attention_share: float = 0.25
    cross_attention_every: int = 4
    image_numbers: str = "none"
    image_number_limit: int = 64
    image_positions: str = "running"
    projector_type: str = "linear"
    image_seq_length: int = 256
    vision_feature_layer: int | None = None
    vision_feature_select_strategy: Literal["default", "full"] = "full"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_name(self.attention_kind, MODEL_KINDS)
        resolve_implementation(self.attention_implementation)
        check_choice("image_positions", self.image_positions, POSITIONS)
        self._check_depth()
        check_choice("image_numbers", self.image_numbers, STARTS)
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
    def early(self) -> EarlyLayers | None:
        """The first layers, where they attend by a kind of their own."""
        if self.early_attention_kind is None:
            return None
        return EarlyLayers(self.early_attention_kind, max(1, round(self.early_attention_share * self._layers)))

    @property
    def layer_kinds(self) -> tuple[AttentionKind, ...]:
        """The kinds of attention of the language model's layers: one, or two by depth."""
        names = (self.decoder_kind,) if self.early is None else (self.early.kind, self.decoder_kind)
        return tuple(KINDS[name] for name in names)

    @property
    def attention(self) -> dict[str, Any]:
        """How the model attends, by the names of `conf/attention`; the share of early layers only where some are."""
        chosen = {name: getattr(self, field) for field, name in ATTENTION.items()}
        return chosen if self.early is not None else {**chosen, "early_share": type(self).early_attention_share}

    @property
    def plain_causal(self) -> bool:
        """Whether all layers attend causally, by transformers' own functions."""
        return self.decoder_kind == "causal" and self.early is None

    @property
    def decoder_attention(self) -> str:
        """The language model's `attn_implementation`."""
        return implementation_name(self.decoder_kind, self.attention_implementation, self.early)

    @property
    def _layers(self) -> int:
        assert isinstance(self.text_config, PreTrainedConfig)
        layers: int = self.text_config.get_text_config().num_hidden_layers
        return layers

    def _check_depth(self) -> None:
        """Refuse first layers that are none, all, or like the others."""
        if self.images_outside and (self.early_attention_kind is not None or self.image_positions != "running"):
            raise ValueError(
                "attention kind 'cross' has images outside the sequence: expected early_attention_kind null and "
                f"image_positions 'running', found {self.early_attention_kind!r} and {self.image_positions!r}"
            )
        if self.early is None:
            return
        check_name(self.early.kind, KINDS)
        some = self.early_attention_share > 0 and self.early.count < self._layers
        if self.early.kind == self.attention_kind or not some:
            raise ValueError(
                f"early_attention_kind {self.early.kind!r} in {self.early_attention_share} of {self._layers} layers: "
                f"expected a kind other than {self.attention_kind!r}, in at least one layer and fewer than all"
            )

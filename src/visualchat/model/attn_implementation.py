"""Which function the language model attends by: always one of the configured kind, whoever asks for another.

transformers, and programs that serve its models, choose attention by a name (`sdpa`, `eager`, ...) that means plain
causal attention. A model that was trained with another kind would continue with it and answer worse, silently, so a
name is read as an implementation of the configured kind, and what cannot be read so is refused.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from visualchat.attention import implementation_name
from visualchat.attention.functional import IMPLEMENTATIONS
from visualchat.attention.register import CAUSAL, OWN
from visualchat.model.configuration_visualchat import VisualChatConfig

PLAIN = {"eager": "eager", "sdpa": "sdpa", "flex_attention": "flex"}
"""transformers' names of what the kinds are implemented by, too."""


def _own_names(config: VisualChatConfig) -> set[str]:
    """The names of the configured kind."""
    return {implementation_name(config.decoder_kind, how, config.early) for how in IMPLEMENTATIONS}


def within_kind(config: VisualChatConfig, requested: str) -> str:
    """The language model's `attn_implementation` where one is asked for by name.

    Raises:
        ValueError: The configured kind has no such implementation.
    """
    if config.plain_causal and requested not in OWN:
        return requested  # transformers' own, which checks it
    if requested in PLAIN:
        return implementation_name(config.decoder_kind, PLAIN[requested], config.early)
    if requested in _own_names(config):
        return requested
    raise ValueError(
        f"attn_implementation={requested!r} is not one of attention kind {config.decoder_kind!r}, which "
        "config.attention_kind says: "
        f"expected one of {', '.join(PLAIN)}"
    )


def by_part(config: VisualChatConfig, requested: str | dict[str, str]) -> dict[str, str]:
    """What transformers' `set_attn_implementation` takes, for encoder and language model each.

    Raises:
        ValueError: As in `within_kind`.
    """
    if isinstance(requested, str):
        requested = {"text_config": requested} | (
            {} if requested in OWN else {"": requested, "vision_config": requested}
        )
    if "text_config" in requested:
        requested = {**requested, "text_config": within_kind(config, requested["text_config"])}
    return requested


def initial_attention(config: VisualChatConfig) -> str:
    """The `attn_implementation` of a language model that is built: what `from_pretrained` was asked for, or the field.

    Raises:
        ValueError: As in `within_kind`; or a name of this package was asked for the encoder, too.
    """
    asked = config._attn_implementation
    if asked in OWN:
        raise ValueError(
            f"attn_implementation={asked!r} would switch the vision encoder, too: expected one of {', '.join(PLAIN)}, "
            f'or {{"text_config": {asked!r}}}'
        )
    text = getattr(config.text_config, "_attn_implementation", None)
    if text is not None and (asked is not None or config.attention_implementation == "auto"):
        return within_kind(config, text)
    return config.decoder_attention


def check_attention(config: VisualChatConfig, used: str | None) -> None:
    """Refuse a language model whose attention was switched past the joint model.

    Raises:
        ValueError: It is not of the configured kind.
    """
    if used not in _own_names(config) and not (config.plain_causal and used not in OWN):
        raise ValueError(
            f"the language model attends by {used!r}, config.attention_kind says {config.decoder_kind!r}"
            f"{'' if config.early is None else f' after {config.early}'}: its answers would not be "
            "those it was trained for; choose by set_attn_implementation of the whole model"
        )


def takes_segments(language_model: PreTrainedModel) -> bool:
    """Whether packed dialogues are told by `segment_ids`; transformers' own functions tell them by their positions."""
    config = language_model.config
    name = config._attn_implementation
    own_way = ("sliding_window", "attn_logit_softcapping", "attention_dropout")  # what only transformers' own honours
    return name in OWN and not (name == CAUSAL and any(getattr(config, field, None) for field in own_way))

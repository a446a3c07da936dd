"""The family in transformers: each kind is an `attn_implementation` of any causal LM with the attention interface.

The only file that knows transformers' registries. A model passes `key_modality` (B, K) as a keyword of its forward; it
travels unchanged down to the attention function. transformers' mask functions never see it, so ours only hands on the
padding mask.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from visualchat.attention.functional import IMPLEMENTATIONS, multimodal_attention
from visualchat.attention.kinds import KINDS, attention_kind


def implementation_name(kind: str, implementation: str = "sdpa") -> str:
    """The `attn_implementation` of a kind; plain causal attention is transformers' own.

    Raises:
        ValueError: The kind or the implementation is unknown.
    """
    attention_kind(kind)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {implementation!r}, expected one of {', '.join(IMPLEMENTATIONS)}")
    return implementation if kind == "causal" else f"{kind}_{implementation}"


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    kind: str,
    implementation: str,
    scaling: float | None = None,
    dropout: float = 0.0,
    key_modality: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature; without `key_modality` every token is text. Returns (B, Q, Hq, D)."""
    for name in ("softcap", "sliding_window", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(
                f"attention kind {kind!r} cannot honour {name}={kwargs[name]!r} of {type(module).__name__}"
            )
    if dropout:
        raise ValueError(f"attention kind {kind!r} has no dropout, found {dropout}; set attention_dropout to 0")
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            f"attention kind {kind!r} takes a padding mask of shape (B, K), found {tuple(attention_mask.shape)}"
        )
    if key_modality is None:
        key_modality = torch.zeros(key.shape[0], key.shape[2], dtype=torch.long, device=key.device)
    out = multimodal_attention(
        query,
        key,
        value,
        kind=kind,
        query_modality=key_modality[:, key_modality.shape[1] - query.shape[2] :],
        key_modality=key_modality,
        key_padding_mask=attention_mask,
        implementation=implementation,
        scale=scaling,
    )
    return out.transpose(1, 2).contiguous(), None


def _padding_mask(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """transformers' mask signature: hands the padding mask (B, K) on to the attention function."""
    return attention_mask


def register() -> None:
    """Make every kind known to transformers under `implementation_name(kind, implementation)`; done on import."""
    for kind in KINDS:
        for implementation in IMPLEMENTATIONS:
            name = implementation_name(kind, implementation)
            if kind != "causal":
                AttentionInterface.register(name, partial(_attention, kind=kind, implementation=implementation))
                AttentionMaskInterface.register(name, _padding_mask)


register()

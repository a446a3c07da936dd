"""The family in transformers: each kind is an `attn_implementation` of any causal LM with the attention interface.

The only file that knows transformers' registries. What tokens are travels as keywords of the language model's forward
(`key_modality` and the ids of `multimodal_attention`, all (B, K)) unchanged down to the attention function;
transformers' mask functions never see them, so ours only hands on the padding mask.

    enable(model, kind="mmca")      # any causal LM, or an image-text model that splices image tokens (LLaVA)
    model(input_ids, mm_token_type_ids=...)
    disable(model)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from visualchat.attention._patch import Patch, Prepare, add_patch, has_patch, remove_patch
from visualchat.attention.functional import IMPLEMENTATIONS, multimodal_attention, resolve_implementation
from visualchat.attention.kinds import KINDS, EarlyLayers, Modality, attention_kind
from visualchat.attention.layout import Layout
from visualchat.attention.watch import Watch

logger = logging.get_logger(__name__)

NAME = "attention_kind"
"""Of what `enable` changes on a model."""

CAUSAL = "causal_sdpa"
"""transformers' `sdpa`, with a way of its own for packed rows that are told by `segment_ids`."""

OWN: set[str] = set()
"""Every `attn_implementation` that transformers has from here."""

IDS = ("image_ids", "unit_ids", "segment_ids", "key_order")


def implementation_name(kind: str, implementation: str = "auto", early: EarlyLayers | None = None) -> str:
    """The `attn_implementation` of a named kind; plain causal attention is transformers' own, but for packed rows.

    Args:
        kind: A name in `KINDS`.
        implementation: As in `multimodal_attention`.
        early: The first layers, if they attend by another kind; their name becomes known to transformers here.

    Raises:
        ValueError: A kind or the implementation is unknown.
    """
    attention_kind(kind)
    implementation = resolve_implementation(implementation)
    if early is not None:
        attention_kind(early.kind)
        name = f"{early.kind}_{early.count}_{kind}_{implementation}"
        _register(name, partial(_attention, kind=kind, implementation=implementation, early=early), _padding_mask)
        return name
    if kind == "causal":
        return {"flex": "flex_attention", "sdpa": CAUSAL}.get(implementation, implementation)
    return f"{kind}_{implementation}"


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    kind: str,
    implementation: str,
    early: EarlyLayers | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    key_modality: Tensor | None = None,
    watch: Watch | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature; without `key_modality` every token is text. Returns (B, Q, Hq, D)."""
    if early is not None:
        kind = early.kind if _layer_index(module) < early.count else kind
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
    if attention_mask is not None:  # a static cache is longer than what it holds
        key, value = key[:, :, : attention_mask.shape[1]], value[:, :, : attention_mask.shape[1]]
    ids: dict[str, Any] = {name: kwargs.get(name) for name in IDS}
    if key_modality is None:
        key_modality = torch.zeros(key.shape[0], key.shape[2], dtype=torch.long, device=key.device)
        ids |= {name: key_modality - 1 for name in ("unit_ids", "image_ids") if ids[name] is None}
    if torch.is_autocast_enabled(query.device.type):  # rotary positions leave query and key in fp32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if watch is not None:
        layout = Layout(watch.last, key_modality, attention_mask, **ids)
        watch.see(_layer_index(module), query, key, kind=attention_kind(kind), layout=layout, scale=scaling)
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
        **ids,
    )
    return out.transpose(1, 2).contiguous(), None


def _layer_index(module: nn.Module) -> int:
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise ValueError(f"{type(module).__name__} does not tell its layer's number, which attention by depth needs")
    return index


def _causal(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segment_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' own causal attention; of packed rows only what lies within each dialogue is computed.

    Several queries on top of a cache without padding come with a mask (B, K) (`_causal_mask`), and attend without one.
    """
    queries, keys = query.shape[2], key.shape[2]
    if kwargs.get("watch") is not None:
        kwargs |= {"kind": "causal", "implementation": "sdpa", "segment_ids": segment_ids}
        return _attention(module, query, key, value, None, **kwargs)
    on_cache = attention_mask is not None and attention_mask.ndim == 2
    if segment_ids is None and on_cache and any(kwargs.get(name) for name in ("dropout", "sliding_window")):
        on_cache, shape = False, {"batch_size": len(query), "q_length": queries, "kv_length": keys}
        attention_mask = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](
            **shape, q_offset=keys - queries, allow_is_causal_skip=False, device=query.device
        )
    if segment_ids is None and not on_cache:
        found: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, **kwargs
        )
        return found
    ours = {"kind": "causal", "implementation": "sdpa", "segment_ids": segment_ids}
    return _attention(module, query, key, value, None, **{**kwargs, **ours})


def _causal_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """transformers' mask of causal attention; (B, K), all True, on top of a cache where `_causal` needs none."""
    plain = allow_is_causal_skip and mask_function is causal_mask_function and not torch.compiler.is_compiling()
    on_cache = torch.device(device).type == "cpu" and 1 < q_length < kv_length == int(q_offset) + q_length
    if plain and on_cache and (attention_mask is None or bool(attention_mask.all())):
        return torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)
    given = {"mask_function": mask_function, "attention_mask": attention_mask, "device": device}
    lengths = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length, "q_offset": q_offset}
    found: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](
        **lengths, **given, allow_is_causal_skip=allow_is_causal_skip, **kwargs
    )
    return found


def _padding_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """transformers' mask signature: the padding mask (B, K) of the keys that hold a token; None where all do."""
    held = int(q_offset) + q_length
    if attention_mask is not None:
        return attention_mask[:, :held]
    return None if held == kv_length else torch.ones(batch_size, held, dtype=torch.bool, device=device)


def register() -> None:
    """Make every kind known to transformers under `implementation_name(kind, implementation)`; done on import."""
    for kind in KINDS:
        for implementation in IMPLEMENTATIONS:
            if kind != "causal":
                attend = partial(_attention, kind=kind, implementation=implementation)
                _register(implementation_name(kind, implementation), attend, _padding_mask)
    _register(CAUSAL, _causal, _causal_mask)


def _register(name: str, attend: Callable[..., Any], mask: Callable[..., Any]) -> None:
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, mask)
    OWN.add(name)


register()


def enable(
    model: PreTrainedModel, kind: str = "mmca", implementation: str = "auto", early: EarlyLayers | None = None
) -> None:
    """Switch a model of transformers to a kind of attention, in place; text alone needs no further argument.

    After it, `forward` and `generate` take `mm_token_type_ids` (B, S), a `Modality` each, and the ids of
    `multimodal_attention`. An image-text model that marks images by `config.image_token_id` needs none of them for the
    kinds without units.

    Args:
        model: A causal language model, or an image-text model with a `text_config`, whose language model uses
            transformers' attention interface.
        kind: A name in `KINDS`.
        implementation: As in `multimodal_attention`.
        early: The first layers, if they attend by another kind.

    Raises:
        ValueError: A name is unknown, or there are not more layers than early ones.
    """
    layers = model.get_decoder().config.num_hidden_layers
    if early is not None and not 0 < early.count < layers:
        raise ValueError(f"early layers must be fewer than the model's {layers} and at least 1, found {early.count}")
    name = implementation_name(kind, implementation, early)
    disable(model)
    before = model.get_decoder().config._attn_implementation
    _set_implementation(model, name)
    handle = model.register_forward_pre_hook(_add_key_modality, with_kwargs=True)
    add_patch(model, NAME, Patch((handle,), partial(_preparing, model), before))


def disable(model: PreTrainedModel) -> None:
    """Undo `enable`; nothing happens to a model that is not switched."""
    if has_patch(model, NAME):
        _set_implementation(model, remove_patch(model, NAME).before)


def _set_implementation(model: PreTrainedModel, name: str) -> None:
    """Of the language model alone: a vision tower keeps its own."""
    model.set_attn_implementation({"text_config": name} if hasattr(model.config, "text_config") else name)


def _add_key_modality(
    model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Before each forward: the modality of all keys, from what the caller or `generate` told."""
    types = kwargs.pop("mm_token_type_ids", None)
    if kwargs.get("key_modality") is None:
        tokens = args[0] if args else kwargs.get("input_ids")
        if types is None:
            types = _image_tokens(model, tokens)
        cache = kwargs.get("past_key_values")
        cached = 0 if cache is None else int(cache.get_seq_length())
        if types is not None and cached:
            raise ValueError(
                "with tokens in the cache, key_modality (B, K) must tell the modality of cached and new tokens"
            )
        if types is None:  # text alone; told once here, so that all layers share one plan
            logger.warning_once("mm_token_type_ids are not given: every token counts as text, and attention is causal")
            tokens = kwargs["inputs_embeds"] if tokens is None else tokens
            types = torch.zeros(len(tokens), cached + tokens.shape[1], dtype=torch.long, device=tokens.device)
            kwargs |= {name: types - 1 for name in ("unit_ids", "image_ids") if kwargs.get(name) is None}
        kwargs["key_modality"] = types
    positions = kwargs.get("position_ids")
    packed = kwargs.get("attention_mask") is None and kwargs.get("past_key_values") is None
    if packed and positions is not None and kwargs.get("segment_ids") is None:  # transformers' way to say: packed
        kwargs["segment_ids"] = (positions.diff(dim=-1, prepend=positions[:, :1] - 1) != 1).cumsum(-1)
    return args, kwargs


def _image_tokens(model: PreTrainedModel, input_ids: Tensor | None) -> Tensor | None:
    """The modality of tokens by the model's own image token; None for a model that has none."""
    token = getattr(model.config, "image_token_id", None)
    return None if token is None or input_ids is None else (input_ids == token).long() * Modality.IMAGE


def _preparing(model: PreTrainedModel, prepare: Prepare) -> Prepare:
    """A `prepare_inputs_for_generation` that also tells the modality of all tokens so far."""

    def prepared(
        input_ids: Tensor,
        *args: Any,
        mm_token_type_ids: Tensor | None = None,
        unit_ids: Tensor | None = None,
        image_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        types = _image_tokens(model, input_ids) if mm_token_type_ids is None else mm_token_type_ids
        types = torch.zeros_like(input_ids) if types is None else types
        model_inputs = prepare(input_ids, *args, **kwargs)
        model_inputs["key_modality"] = types
        for name, ids in (("unit_ids", unit_ids), ("image_ids", image_ids)):
            if ids is not None:  # what is generated belongs to none; a chunk of a prompt needs its own part only
                model_inputs[name] = nn.functional.pad(ids, (0, types.shape[1] - ids.shape[1]), value=-1)
        return model_inputs

    return prepared

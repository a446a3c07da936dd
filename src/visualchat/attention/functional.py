"""`multimodal_attention`: the one functional entry to the attention family, with its checks.

Shapes: B batch, Hq query heads, Hkv key heads (Hq a multiple of Hkv), Q queries, K keys, D head size.
"""

from __future__ import annotations

from torch import Tensor

from visualchat.attention.eager import eager_attention
from visualchat.attention.flex import flex_attention
from visualchat.attention.kinds import AttentionKind, ImageContext, Softmax, attention_kind
from visualchat.attention.layout import Layout
from visualchat.attention.plan_cache import known_layout
from visualchat.attention.sdpa import sdpa_attention

IMPLEMENTATIONS = {"eager": eager_attention, "sdpa": sdpa_attention, "flex": flex_attention}


def multimodal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kind: str | tuple[ImageContext, Softmax] | AttentionKind,
    query_modality: Tensor,
    key_modality: Tensor,
    image_ids: Tensor | None = None,
    unit_ids: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    key_order: Tensor | None = None,
    implementation: str = "auto",
    scale: float | None = None,
) -> Tensor:
    """Attention of one kind of the family over a sequence of text and image tokens.

    The queries are the last Q of the K positions: all of them in training and prefill, one in a decode step, some of
    them in chunked prefill. Under image context `image` a chunk must not end inside an image.

    Args:
        query: (B, Hq, Q, D).
        key: (B, Hkv, K, D), rotary embedding applied.
        value: (B, Hkv, K, D).
        kind: A name in `visualchat.attention.KINDS`, or a point (`image_context`, `softmax`) of the two axes.
        query_modality: (B, Q) int, a `Modality` each; the last Q entries of `key_modality`.
        key_modality: (B, K) int.
        image_ids: (B, K) int, which image a token belongs to, negative for none; image context `image` needs it.
        unit_ids: (B, K) int, which label and image form a unit, negative for none; `label` and `unit` need it. A label
            stands before its image.
        key_padding_mask: (B, K), True or 1 at real tokens; None where there is no padding. The output at padding is
            finite and means nothing.
        segment_ids: (B, K) int, which packed dialogue a token belongs to; nothing attends across, and the tokens of one
            stand together. None where a row is one dialogue.
        key_order: (B, K) int, where in the conversation each key stands, for a cache that holds images before the text
            that they follow; its queries are text. None where keys stand in the order of the conversation. `flex` has
            no such form.
        implementation: `eager` (the oracle), `sdpa` (fast, memory linear in length), `flex` (FlexAttention, for GPUs:
            no backward on CPU), or `auto`.
        scale: Factor on the scores; D ** -0.5 if None.

    Returns:
        (B, Hq, Q, D).

    Raises:
        ValueError: A name is unknown, shapes do not fit each other, or ids that the kind needs are missing.
    """
    point = attention_kind(kind)
    ids = (key_modality, key_padding_mask, image_ids, unit_ids, segment_ids, key_order)
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in (query, key, value))
    layout = known_layout(
        (query_modality.shape, *shapes), ids, lambda: _layout((query, key, value), query_modality, ids)
    )
    if point.uses_images and image_ids is None:
        raise ValueError("image context 'image' needs image_ids (B, K) to tell images apart, found None")
    if point.uses_units and unit_ids is None:
        raise ValueError(f"image context {point.image_context!r} needs unit_ids (B, K), found None")
    name = resolve_implementation(implementation)
    if key_order is not None and name == "flex":
        raise ValueError(
            "implementation 'flex' takes keys in the order of the conversation, found key_order; use 'sdpa'"
        )
    attend = IMPLEMENTATIONS[name]
    return attend(
        query, key, value, kind=point, layout=layout, scale=query.shape[-1] ** -0.5 if scale is None else scale
    )


def resolve_implementation(name: str) -> str:
    """The implementation of that name, `auto` resolved: `sdpa` on every device.

    On CPU `eager` wins only up to some 64 tokens, by 0.1 to 0.2 ms a layer: not worth a second path through a model.
    On a GPU `sdpa` runs plain flash kernels on fewer pairs, needs no compiler, and recompiles nothing when lengths
    change; `flex` saves its gathers. Which of the two wins there was not measured.

    Raises:
        ValueError: There is none of that name.
    """
    if name == "auto":
        return "sdpa"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {name!r}, expected auto or one of {', '.join(IMPLEMENTATIONS)}")
    return name


def _layout(
    qkv: tuple[Tensor, Tensor, Tensor],
    query_modality: Tensor,
    ids: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
) -> Layout:
    """What the tokens are, if all fits together; `ids` are those of the keys, in the order of `Layout`."""
    batch, k_length = _check_shapes(*qkv)
    q_length = qkv[0].shape[2]
    names = ("key_modality", "key_padding_mask", "image_ids", "unit_ids", "segment_ids", "key_order")
    given = {"query_modality": (query_modality, q_length)}
    given |= {name: (found, k_length) for name, found in zip(names, ids, strict=True) if found is not None}
    for name, (found, length) in given.items():
        if found.shape != (batch, length):
            raise ValueError(f"{name} must have shape {(batch, length)}, found {tuple(found.shape)}")
    modality, padding, *others = ids
    return Layout(q_length, modality, None if padding is None else padding.bool(), *others)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, int]:
    """B and K, if the three tensors fit each other."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 4 or tensor.dtype != query.dtype:
            raise ValueError(
                f"query, key and value must be 4-D and of one dtype: found {name} of shape {tuple(tensor.shape)} and "
                f"{tensor.dtype}, query of {query.dtype}"
            )
    batch, q_heads, q_length, head_size = query.shape
    k_heads, k_length = key.shape[1], key.shape[2]
    if key.shape != value.shape or key.shape != (batch, k_heads, k_length, head_size):
        raise ValueError(
            "key and value must both be (B, Hkv, K, D) with query's B and D: found query "
            f"{tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
        )
    if q_heads % k_heads or q_length > k_length:
        raise ValueError(
            f"query heads must be a multiple of key heads and Q at most K: found {q_heads} and {k_heads} heads, "
            f"Q={q_length}, K={k_length}"
        )
    return batch, k_length

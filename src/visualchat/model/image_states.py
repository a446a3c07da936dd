"""An image's keys and values, computed alone and put in their place: one way for known images and new ones.

Under image contexts `self`, `image`, `label` and `unit` nothing outside an image (and its label, for the last two)
flows into its states. They are computed by a pass over the image (or label and image) alone, at positions counted from
its own start (all 0 under `self`, where positions inside an image do not matter), and rotated by the model's own rotary
embedding to the place where the image stands; where images share positions they stand at 0 anywhere.

Shapes: L layers, H key heads, D head size, n tokens of a unit (an image, with its label where the kind makes them one).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from visualchat.attention import Modality
from visualchat.model.base_model import VisualChatModel
from visualchat.model.images_first import Insertion, PutKeys

Rotate = Callable[..., tuple[Tensor, Tensor]]
"""transformers' `apply_rotary_pos_emb`: queries, keys (B, H, n, D), cosines, sines (B, n, D) -> both turned."""

OWN_STATES = ("self", "image", "label", "unit")
"""Image contexts under which an image's states are its own, position by position."""

FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angle is position times a frequency that does not change with the length (`dynamic` and
`longrope` do change)."""


@dataclass(frozen=True)
class Unit:
    """An image in a conversation, with its label where the kind of attention makes them one.

    Attributes:
        ids: Token ids; an image slot holds any.
        modality: A `Modality` each.
        number: The image's.
        place: Where in the conversation its first token stands.
    """

    ids: tuple[int, ...]
    modality: tuple[int, ...]
    number: int
    place: int

    def __len__(self) -> int:
        return len(self.ids)


def why_not_own(model: VisualChatModel) -> str | None:
    """Why this model's images have no states of their own that could be put anywhere; None where they have."""
    config = model.config
    kinds = config.layer_kinds
    if config.images_outside or any(kind.image_context not in OWN_STATES for kind in kinds):
        depth = "" if config.early is None else f" after {config.early.kind!r}"
        return (
            f"under attention kind {config.attention_kind!r}{depth} an image's states are not kept apart from what "
            "precedes it"
        )
    with_label = {kind.uses_units for kind in kinds}
    if len(with_label) > 1:
        return "a label belongs to its image in some layers and to the text before it in others"
    if with_label == {True} and config.image_positions == "shared":
        return "with image_positions 'shared' an image is not everywhere at the same distance from its label"
    implementation = model.language_model.config._attn_implementation
    if implementation.endswith("_flex"):
        return f"attention implementation {implementation!r} takes keys in the order of the conversation only"
    if not all(type(layer) is DynamicLayer for layer in _empty_cache(model).layers):
        return f"{type(model.language_model).__name__} has layers that do not keep all keys"
    if config.image_positions == "shared":  # at position 0 nothing turns
        return None
    rotary = _rotary(model)
    if rotary is None or _rotate_function(model) is None:
        return f"{type(model.language_model).__name__} has no rotary embedding of transformers' usual form"
    rope = getattr(rotary, "rope_type", None)
    if rope not in FIXED_ROTATIONS:
        return f"rotary embedding {rope!r} changes its angles with the length of the conversation"
    return None if _turns_as_the_model(model) else f"{type(model.language_model).__name__} turns keys in another way"


def units_from(model: VisualChatModel, ids: list[int], modality: list[int], units: list[int], start: int) -> list[Unit]:
    """The units among the tokens from `start` on, in order."""
    with_label = model.config.layer_kinds[0].uses_units
    found, size = [], model.config.image_seq_length
    place = start
    while place < len(ids):
        if modality[place] != Modality.IMAGE:
            place += 1
            continue
        first, stop = place, place + size
        while with_label and first > start and units[first - 1] == units[place]:
            first -= 1
        assert modality[place:stop] == [Modality.IMAGE] * size
        found.append(Unit(tuple(ids[first:stop]), tuple(modality[first:stop]), units[place], first))
        place = stop
    return found


@torch.no_grad()
def unit_states(model: VisualChatModel, unit: Unit, pixel_values: Tensor) -> Tensor:
    """Keys and values (2, L, H, n, D) of a unit from its image (1, 3, height, width)."""
    device = model.device
    positions = _own_positions(model, len(unit)).to(device)
    cache = _empty_cache(model)
    model.base_model(  # without the head
        input_ids=torch.tensor([unit.ids], device=device),
        pixel_values=pixel_values.to(device),
        mm_token_type_ids=torch.tensor([unit.modality], device=device),
        unit_ids=torch.full((1, len(unit)), unit.number, device=device),
        position_ids=positions[None],
        past_key_values=cache,
        use_cache=True,
    )
    return _stacked(cache)


@torch.no_grad()
def opening_states(model: VisualChatModel, ids: list[int]) -> Tensor:
    """Keys and values (2, L, H, n, D) of the text that opens a conversation, rotated."""
    cache = _empty_cache(model)
    model.base_model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True)
    return _stacked(cache)


@torch.no_grad()
def in_place(model: VisualChatModel, units: list[Unit], states: list[Tensor]) -> list[Insertion]:
    """The states of some units, given as of `unit_states`, at their places in a conversation.

    Keys are turned as they are written, unit by unit and layer by layer: what is in hand stays in the processor's
    cache.
    """
    turns: list[PutKeys | None] = [None] * len(units)
    if model.config.image_positions == "running":
        places = torch.cat([torch.arange(unit.place, unit.place + len(unit)) for unit in units])
        shifts = places - torch.cat([_own_positions(model, len(unit)) for unit in units])
        rotate = _rotate_function(model)
        assert rotate is not None
        parts = (tensor.split([len(unit) for unit in units], 1) for tensor in _turn(model, states[0], shifts))
        turns = [partial(_put_turned, rotate, cos, sin) for cos, sin in zip(*parts, strict=True)]
    return [
        Insertion(unit.place, unit.modality.count(Modality.TEXT), own, turn)
        for unit, own, turn in zip(units, states, turns, strict=True)
    ]


def _own_positions(model: VisualChatModel, length: int) -> Tensor:
    """Where the tokens of a unit stand while it is computed alone, (n,)."""
    config = model.config
    if config.image_positions == "shared" or all(kind.image_context == "self" for kind in config.layer_kinds):
        return torch.zeros(length, dtype=torch.long)
    return torch.arange(length)


def _empty_cache(model: VisualChatModel) -> DynamicCache:
    text_config: Any = model.config.text_config
    return DynamicCache(config=text_config)


def _stacked(cache: DynamicCache) -> Tensor:
    """(2, L, H, n, D) of a cache of one row."""
    layers: list[Any] = cache.layers
    return torch.stack([torch.stack([getattr(layer, name)[0] for layer in layers]) for name in ("keys", "values")])


def _rotary(model: VisualChatModel) -> Any:
    """The language model's rotary embedding; None where there is not exactly one."""
    found = [module.rotary_emb for module in model.language_model.modules() if hasattr(module, "rotary_emb")]
    return found[0] if len(found) == 1 else None


def _rotate_function(model: VisualChatModel) -> Rotate | None:
    """The function by which its attention layers turn queries and keys."""
    found: Any = getattr(sys.modules[type(_decoder(model)).__module__], "apply_rotary_pos_emb", None)
    return found


def _decoder(model: VisualChatModel) -> nn.Module:
    """The module that owns the rotary embedding."""
    return next(module for module in model.language_model.modules() if hasattr(module, "rotary_emb"))


def _turn(model: VisualChatModel, like: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (1, N, D) that turn keys on by so many positions (N,) each."""
    rotary: Any = _rotary(model)
    cos, sin = rotary(like, shifts[None].to(like.device))
    if rotary.attention_scaling != 1.0:  # which the keys have already
        cos, sin = cos / rotary.attention_scaling, sin / rotary.attention_scaling
    return cos, sin


def _put_turned(rotate: Rotate, cos: Tensor, sin: Tensor, keys: Tensor, part: slice, out: Tensor) -> None:
    """Put keys (H, m, D) into `out`, turned as the model's own function does it, by `part` of the angles (1, n, D).

    Most functions do it in a way that takes three calls here, and no memory but that of `out`.
    """
    cos, sin = cos[:, part], sin[:, part]
    if cos.shape[-1] != keys.shape[-1] or not _turns_halves(rotate):
        out.copy_(rotate(keys[None, :0], keys[None], cos, sin)[1][0])
        return
    half = keys.shape[-1] // 2
    torch.mul(keys, cos[0], out=out)
    out[..., :half].addcmul_(keys[..., half:], sin[0, :, :half], value=-1)
    out[..., half:].addcmul_(keys[..., :half], sin[0, :, half:])


@lru_cache
def _turns_halves(rotate: Rotate) -> bool:
    """Whether a function turns the first half of each key against the second, as LLaMA's does."""
    keys, cos, sin = torch.randn(3, 1, 4, 8, generator=torch.Generator().manual_seed(0)).unbind()
    cos, sin = (torch.cat([part[..., :4], part[..., :4]], -1) for part in (cos, sin))
    turned = torch.cat([-keys[..., 4:], keys[..., :4]], -1)
    return torch.allclose(rotate(keys[None, :0], keys[None], cos, sin)[1][0], keys * cos + turned * sin)


_tried: WeakSet[nn.Module] = WeakSet()


@torch.no_grad()
def _turns_as_the_model(model: VisualChatModel) -> bool:
    """Whether keys computed at 0 and turned by seven positions are those that the model computes there.

    In the first layer, whose keys depend on the token and its position alone. Within the rounding of the model's dtype.
    A model that was found to do so is not tried again: it will not turn keys in another way.
    """
    if model in _tried:
        return True
    ids = torch.tensor([[0]], device=model.device)
    states = []
    for position in (0, 7):
        cache = _empty_cache(model)
        at = torch.full_like(ids, position)
        model.base_model(input_ids=ids, position_ids=at, past_key_values=cache, use_cache=True)
        states.append(_stacked(cache)[0])
    turn = _turn(model, states[0], torch.tensor([7]))
    rotate = _rotate_function(model)
    assert rotate is not None
    turned = torch.empty_like(states[0])
    for keys, out in zip(states[0], turned, strict=True):
        _put_turned(rotate, *turn, keys, slice(None), out)
    eps = torch.finfo(turned.dtype).eps
    alike = bool((turned - states[1])[0].abs().max() <= 16 * eps * states[1][0].abs().max())
    if alike:
        _tried.add(model)
    return alike

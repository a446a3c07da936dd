"""Images outside the sequence, for attention kind `cross` (CA + CrA, arXiv 2309.14327, section 4.2.1).

An image has one slot in the sequence, which no token attends to and which takes no position: it only says where the
image stands. Gated cross-attention layers read the images (`visualchat.attention.cross`); a cache holds them between
calls, so that `generate` and later rounds of a chat see them.

Shapes: B batch, S sequence, K keys (S plus what is cached), N images of the whole batch, R of the fullest row, P states
an image, E embedding size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from visualchat.attention import Modality

HELD = "visualchat_images"
"""The attribute of a cache that holds the images of earlier calls."""


def outside_sequence(
    features: Tensor | None, mm_token_type_ids: Tensor, key_modality: Tensor, mask: Tensor | None, cache: Cache | None
) -> dict[str, Any]:
    """What the language model takes beside the embeddings.

    Args:
        features: (N, P, E), the images of the slots in this call, row by row; None where there is none.
        mm_token_type_ids: (B, S), one image token an image.
        key_modality: (B, K).
        mask: (B, K), 1 at real tokens; None where all are.
        cache: Of earlier calls.

    Returns:
        `image_states` (B, R, P, E) and `image_positions` (B, R), those of earlier calls first, if there are images;
        `attention_mask` (B, K), which hides the slots, and `position_ids` (B, S), which count text alone.

    Raises:
        ValueError: There are not as many slots as images.
    """
    slots = mm_token_type_ids == Modality.IMAGE
    images_given = 0 if features is None else len(features)
    if int(slots.sum()) != images_given:
        raise ValueError(
            f"image slots and images do not match: mm_token_type_ids marks {int(slots.sum())} slots, one an image with "
            f"attention kind 'cross', {images_given} images are given"
        )
    text = key_modality == Modality.TEXT
    if mask is not None:
        text = text & mask[:, : text.shape[1]].bool()
    positions = (text.long().cumsum(-1) - 1).clamp(min=0)[:, -slots.shape[1] :]
    inputs = {"attention_mask": text.long(), "position_ids": positions}
    images: tuple[Tensor, Tensor] | None = getattr(cache, HELD, None)
    if features is not None:
        new = _by_row(features, slots, key_modality.shape[1] - slots.shape[1])
        images = new if images is None else (torch.cat([images[0], new[0]], 1), torch.cat([images[1], new[1]], 1))
    return inputs if images is None else {**inputs, "image_states": images[0], "image_positions": images[1]}


def hold(cache: Cache | None, inputs: dict[str, Any]) -> None:
    """Keep the images of a call for later calls with its cache."""
    if cache is not None and "image_states" in inputs:
        setattr(cache, HELD, (inputs["image_states"], inputs["image_positions"]))


def unseen_image(features: Tensor, rows: int) -> dict[str, Tensor]:
    """An image (1, P, E) that no token of B rows sees: it touches what trains and changes nothing."""
    return {
        "image_states": features[None].expand(rows, -1, -1, -1),
        "image_positions": torch.full((rows, 1), -1, device=features.device),
    }


def _by_row(features: Tensor, slots: Tensor, before: int) -> tuple[Tensor, Tensor]:
    """States (B, R, P, E) and positions (B, R), -1 where a row has fewer images; `before` tokens stand in the cache."""
    counts = slots.sum(-1)
    most = int(counts.max())
    filled = torch.arange(most, device=slots.device) < counts[:, None]  # (B, R)
    states = features.new_zeros(len(slots), most, *features.shape[1:])
    positions = torch.full_like(filled, -1, dtype=torch.long)
    positions[filled] = slots.nonzero()[:, 1] + before
    return states.masked_scatter(filled[:, :, None, None], features), positions

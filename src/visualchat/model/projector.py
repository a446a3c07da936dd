"""Vision features -> language embeddings: the part that trains (arXiv 2309.14327, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def linear(vision_size: int, text_size: int) -> nn.Module:
    """The paper's projector, one linear map: (N, tokens, vision_size) -> (N, tokens, text_size)."""
    return nn.Linear(vision_size, text_size)


def linear_norm(vision_size: int, text_size: int) -> nn.Module:
    """The published code's `baseline`: a linear map, then a layer norm (eps 1e-12); shapes as in `linear`."""
    return nn.Sequential(nn.Linear(vision_size, text_size), nn.LayerNorm(text_size, eps=1e-12))


PROJECTORS: dict[str, Callable[[int, int], nn.Module]] = {"linear": linear, "linear_norm": linear_norm}

"""The weights by which a model attends in one forward pass, which no implementation but the oracle ever makes.

A `Watch` travels as a keyword (`watch`) of the language model's forward down to each layer's attention, as the ids do,
so that nothing of the model is changed and other threads may use it at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from visualchat.attention.eager import eager_weights
from visualchat.attention.kinds import AttentionKind
from visualchat.attention.layout import Layout


@dataclass(frozen=True)
class Watch:
    """Is told how the last tokens of a pass attend, layer by layer.

    Attributes:
        last: How many tokens.
        take: Called with a layer's index and the weights (B, Hq, last, K) of each of its softmaxes: of the only one, or
            of that over text and that over images.
    """

    last: int
    take: Callable[[int, tuple[Tensor, ...]], None]

    def see(
        self, layer: int, query: Tensor, key: Tensor, *, kind: AttentionKind, layout: Layout, scale: float | None
    ) -> None:
        """What a layer attends with: query (B, Hq, Q, D) and key (B, Hkv, K, D), rotary embedding applied."""
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        self.take(layer, eager_weights(query[:, :, -self.last :], key, kind=kind, layout=layout, scale=scale))

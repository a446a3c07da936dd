"""Any number of image tokens -> a fixed number: learned queries with fixed places attend to them once.

Source: the resampler of Qwen-VL (arXiv 2308.12966, section 2.1), which is also the `perceiver` projector. Names of
parameters are those of Qwen-VL's checkpoints.

Shapes: N images, P tokens an image, Q queries, C width of the tokens, E width of the queries and of the output.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, scaled_dot_product_attention
from transformers import initialization as init


def square_side(count: int) -> int | None:
    """The side of a square grid of that many places; None if there is no such grid."""
    side = math.isqrt(count)
    return side if side * side == count and count > 0 else None


def sincos_positions(side: int, width: int) -> Tensor:
    """Fixed positions of a square grid, (side², width), row by row.

    The first half of the channels tells the column, the second the row; each half is sines, then cosines, of width / 4
    frequencies from 1 down to nearly 1 / 10000.
    """
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width // 4))
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    table = np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)
    return torch.from_numpy(table).float()  # by numpy, because ZeRO's zero.Init rounds what torch makes inside it


def resize_positions(positions: Tensor, side: int) -> Tensor:
    """Positions of a square grid, (places, E), resized bicubically to (side², E), in float32 or better."""
    size = square_side(len(positions))
    assert size is not None, "positions form a square grid"
    if size == side:
        return positions
    grid = positions.to(torch.promote_types(positions.dtype, torch.float32)).view(1, size, size, -1).permute(0, 3, 1, 2)
    resized = interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(0, 2).to(positions.dtype)


class CrossAttention(nn.Module):
    """Multi-head attention with one fused input projection: rows of queries, of keys, of values.

    It is torch's `nn.MultiheadAttention` by name and number, with a language model's habits: sequences come as
    (N, tokens, E), and the output projection is called as a module, so that hooks on it work.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give the input projection fresh weights."""
        init.xavier_uniform_(self.in_proj_weight)
        init.zeros_(self.in_proj_bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(N, Q, E) from queries (N, Q, E), keys and values (N, P, E)."""
        projections = zip(self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        query, key, value = (
            linear(tokens, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for tokens, (weight, bias) in zip((queries, keys, values), projections, strict=True)
        )
        attended = scaled_dot_product_attention(query, key, value)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """`side`² learned queries attend to an image's tokens.

    Args:
        in_features: C.
        out_features: E, a multiple of 4.
        side: The queries form a grid of side × side.
        heads: Of the attention.
        eps: Of the layer norms.
    """

    pos_embed: Tensor

    def __init__(self, in_features: int, out_features: int, side: int, heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.side = side
        self.query = nn.Parameter(torch.empty(side * side, out_features))
        self.register_buffer("pos_embed", torch.empty(side * side, out_features))
        self.kv_proj = nn.Linear(in_features, out_features, bias=False)
        self.ln_q = nn.LayerNorm(out_features, eps=eps)
        self.ln_kv = nn.LayerNorm(out_features, eps=eps)
        self.attn = CrossAttention(out_features, heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give the queries fresh values and the places theirs."""
        init.trunc_normal_(self.query, std=0.02)
        init.copy_(self.pos_embed, sincos_positions(self.side, self.pos_embed.shape[1]))

    def key_positions(self, tokens: int) -> Tensor:
        """Positions of P tokens, (P, E): their grid's, and zeros for one class token before it.

        Raises:
            ValueError: P is neither the size of a square grid nor one more.
        """
        side = square_side(tokens)
        if side is not None:
            return resize_positions(self.pos_embed, side)
        side = square_side(tokens - 1)
        if side is None:
            raise ValueError(f"a resampler needs a square grid of tokens, and at most one before it, found {tokens}")
        return torch.cat([torch.zeros_like(self.pos_embed[:1]), resize_positions(self.pos_embed, side)])

    def forward(self, features: Tensor) -> Tensor:
        """(N, Q, E) from an encoder's tokens (N, P, C)."""
        values = self.ln_kv(self.kv_proj(features))
        keys = values + self.key_positions(features.shape[1])
        queries = (self.ln_q(self.query) + self.pos_embed).expand(len(features), -1, -1)
        return self.attn(queries, keys, values)

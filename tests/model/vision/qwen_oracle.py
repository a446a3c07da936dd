"""Qwen-VL's encoder from its description, number by number: loops over places, patches and heads, no code of ours."""

import math

import torch
from torch import Tensor
from torch.nn.functional import gelu


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def affine(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def cubic(distance: float) -> float:
    """The bicubic kernel with a = -0.75."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def resize_matrix(source: int, target: int) -> Tensor:
    """(target, source): how each new place mixes the old ones along one axis; pixel centres, edges repeated."""
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for place in range(target):
        centre = (place + 0.5) * source / target - 0.5
        for neighbour in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[place, min(max(neighbour, 0), source - 1)] += cubic(centre - neighbour)
    return matrix


def resized(positions: Tensor, side: int) -> Tensor:
    own = math.isqrt(len(positions))
    if own == side:
        return positions
    matrix, grid = resize_matrix(own, side), positions.view(own, own, -1)
    return torch.einsum("ra,cb,abw->rcw", matrix, matrix, grid).flatten(0, 1)


def sincos(side: int, width: int) -> Tensor:
    """Column first, then row; sines then cosines of each."""
    table = torch.zeros(side * side, width, dtype=torch.float64)
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for half, place in enumerate((column, row)):
                for k in range(quarter):
                    angle = place / 10000 ** (k / quarter)
                    table[row * side + column, 2 * half * quarter + k] = math.sin(angle)
                    table[row * side + column, (2 * half + 1) * quarter + k] = math.cos(angle)
    return table


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = query @ key.T / math.sqrt(query.shape[-1])
    return scores.softmax(-1) @ value


def patches_of(image: Tensor, kernel: Tensor) -> Tensor:
    """(patches, W) of one picture (channels, side, side), row by row."""
    size = kernel.shape[-1]
    side = image.shape[-1] // size
    cut = [image[:, r * size : (r + 1) * size, c * size : (c + 1) * size] for r in range(side) for c in range(side)]
    return torch.stack([(kernel * patch).sum((1, 2, 3)) for patch in cut])


def self_attention(x: Tensor, weights: dict[str, Tensor], name: str, heads: int) -> Tensor:
    size = x.shape[-1] // heads
    fused = affine(x, weights, f"{name}.in_proj")
    mixed = []
    for head in range(heads):
        start = head * 3 * size  # query, key and value of one head stand side by side
        query, key, value = (fused[:, start + part * size : start + (part + 1) * size] for part in range(3))
        mixed.append(attend(query, key, value))
    return affine(torch.cat(mixed, -1), weights, f"{name}.out_proj")


def resample(x: Tensor, weights: dict[str, Tensor], name: str, heads: int) -> Tensor:
    """The queries' answers about one picture's tokens (P, W)."""
    kv = norm(x @ weights[f"{name}.kv_proj.weight"].T, weights, f"{name}.ln_kv")
    positions = weights[f"{name}.pos_embed"]
    inputs = (
        norm(weights[f"{name}.query"], weights, f"{name}.ln_q") + positions,
        kv + resized(positions, math.isqrt(len(kv))),
        kv,
    )
    width = kv.shape[-1]
    size = width // heads
    matrix, bias = weights[f"{name}.attn.in_proj_weight"], weights[f"{name}.attn.in_proj_bias"]
    mixed = []
    for head in range(heads):
        query, key, value = (
            given @ matrix[rows].T + bias[rows]
            for part, given in enumerate(inputs)
            for rows in [slice(part * width + head * size, part * width + (head + 1) * size)]
        )
        mixed.append(attend(query, key, value))
    return affine(torch.cat(mixed, -1), weights, f"{name}.attn.out_proj")


def encode(weights: dict[str, Tensor], images: Tensor, *, heads: int, resampler_heads: int) -> Tensor:
    """(N, Q, E) in float64, from weights by their names in a checkpoint."""
    weights = {name: weight.double() for name, weight in weights.items()}
    blocks = len({name.split(".")[2] for name in weights if name.startswith("transformer.resblocks.")})
    features = []
    for image in images.double():
        x = patches_of(image, weights["conv1.weight"])
        x = norm(x + resized(weights["positional_embedding"], math.isqrt(len(x))), weights, "ln_pre")
        for number in range(blocks):
            block = f"transformer.resblocks.{number}"
            x = x + self_attention(norm(x, weights, f"{block}.ln_1"), weights, f"{block}.attn", heads)
            inner = affine(norm(x, weights, f"{block}.ln_2"), weights, f"{block}.mlp.c_fc")
            x = x + affine(gelu(inner), weights, f"{block}.mlp.c_proj")
        features.append(norm(resample(x, weights, "attn_pool", resampler_heads), weights, "ln_post"))
    return torch.stack(features)

"""Random rows of text and images for the tests of attention, and the family's definition written token by token.

Shapes: B batch, K keys, Q queries (the last Q of the K positions), D head size.
"""

import itertools
import random
from dataclasses import dataclass, fields, replace
from typing import get_args

import torch
from torch import Tensor

from visualchat.attention import multimodal_attention
from visualchat.attention.kinds import ImageContext, Softmax

TEXT, IMAGE = 0, 1
PAIRS = list(itertools.product(get_args(ImageContext), get_args(Softmax)))
SHAPES = ("mixed", "text only", "image first", "back to back", "images only", "packed", "left", "right", "packed right")


@dataclass(frozen=True)
class Tokens:
    """What the tokens of B rows are; each (B, K)."""

    modality: Tensor
    image_ids: Tensor
    unit_ids: Tensor
    padding: Tensor | None = None
    segment_ids: Tensor | None = None

    @property
    def length(self) -> int:
        return self.modality.shape[1]

    def fresh(self) -> "Tokens":
        """The same in tensors of their own, so that nothing remembered of the others applies."""
        return Tokens(*(None if (t := getattr(self, f.name)) is None else t.clone() for f in fields(self)))

    def real(self) -> Tensor:
        return torch.ones_like(self.modality, dtype=torch.bool) if self.padding is None else self.padding

    def keywords(self, queries: int) -> dict[str, Tensor | None]:
        """The keywords of `multimodal_attention`."""
        return {
            "query_modality": self.modality[:, self.length - queries :],
            "key_modality": self.modality,
            "image_ids": self.image_ids,
            "unit_ids": self.unit_ids,
            "key_padding_mask": self.padding,
            "segment_ids": self.segment_ids,
        }


def dialogue(shape: str, dice: random.Random) -> list[tuple[int, int, int]]:
    """One dialogue's (modality, image id, unit id) token by token: text, labels and images of random lengths."""
    row: list[tuple[int, int, int]] = []
    for image in range(0 if shape == "text only" else dice.randint(1, 3)):
        text = 0 if shape in ("images only", "back to back") or (shape == "image first" and image == 0) else 5
        row += [(TEXT, -1, -1)] * dice.randint(0, text)
        row += [(TEXT, -1, image)] * dice.randint(0, min(text, 2))
        row += [(IMAGE, image, image)] * dice.randint(1, 4)
    return row + [(TEXT, -1, -1)] * (0 if shape == "images only" else dice.randint(1, 6))


def random_tokens(shape: str, seed: int = 0, batch: int = 2) -> Tokens:
    """A batch of one of `SHAPES`; its rows differ in length and are padded where the shape's name says a side.

    Other shapes are cut to the shortest row, so that they need no padding.
    """
    dice = random.Random(f"{shape} {seed}")
    packed, padded = shape.startswith("packed"), shape.endswith(("left", "right"))
    rows, segments = [], []
    for _ in range(batch):
        parts = [dialogue(shape, dice) for _ in range(3 if packed else 1)]
        rows.append([token for part in parts for token in part])
        segments.append([number for number, part in enumerate(parts) for _ in part])
    length = (max if padded else min)(map(len, rows))

    def tensor(values: list[list[int]], fill: int) -> Tensor:
        surplus = [[fill] * (length - len(row)) for row in values]
        if shape == "left":
            return torch.tensor([gap + row for row, gap in zip(values, surplus, strict=True)])
        return torch.tensor([row[:length] + gap for row, gap in zip(values, surplus, strict=True)])

    modality, image_ids, unit_ids = (
        tensor([[token[i] for token in row] for row in rows], fill) for i, fill in enumerate((TEXT, -1, -1))
    )
    padding = tensor([[1] * len(row) for row in rows], 0).bool() if padded else None
    return Tokens(modality, image_ids, unit_ids, padding, tensor(segments, 99) if packed else None)


def random_qkv(
    tokens: Tokens, queries: int | None = None, *, heads: int = 4, kv_heads: int = 2, size: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Query (B, heads, Q, D), key and value (B, kv_heads, K, D) in float64."""
    generator = torch.Generator().manual_seed(seed)
    batch, length = tokens.modality.shape
    shapes = ((heads, length if queries is None else queries), (kv_heads, length), (kv_heads, length))
    query, key, value = (torch.randn(batch, *s, size, generator=generator, dtype=torch.float64) for s in shapes)
    return query, key, value


def attend(qkv: tuple[Tensor, ...], tokens: Tokens, kind, implementation: str) -> Tensor:
    """`multimodal_attention` with the keywords of `tokens`; the meaningless output at padding is set to 0."""
    queries = qkv[0].shape[2]
    out = multimodal_attention(*qkv, kind=kind, implementation=implementation, **tokens.keywords(queries))
    assert out.isfinite().all()
    return out * tokens.real()[:, None, tokens.length - queries :, None]


def sees(kind: tuple[str, str], tokens: Tokens, b: int, q: int, k: int) -> bool:
    """Whether position q sees position k in row b: the definition of each image context, one token at a time."""
    context = kind[0]
    image_q, image_k = tokens.modality[b, q] == IMAGE, tokens.modality[b, k] == IMAGE
    unit_q = int(tokens.unit_ids[b, q])
    same_image = tokens.image_ids[b, q] == tokens.image_ids[b, k] and tokens.image_ids[b, k] >= 0
    same_unit = unit_q >= 0 and unit_q == tokens.unit_ids[b, k]
    if not tokens.real()[b, k]:
        return False
    if tokens.segment_ids is not None and tokens.segment_ids[b, q] != tokens.segment_ids[b, k]:
        return False
    if k == q:
        return True
    if image_q and context == "image":
        return bool(image_k and same_image)  # also later tokens of it
    if k > q:
        return False
    if image_q:
        return {
            "self": False,
            "label": bool(same_unit and not image_k),
            "unit": bool(same_unit),
            "text": not image_k,
            "all": True,
        }[context]
    if context in ("label", "unit") and unit_q >= 0:  # a label
        return bool(same_unit and not image_k)
    return True


def by_definition(qkv: tuple[Tensor, ...], tokens: Tokens, kind: tuple[str, str]) -> Tensor:
    """The kind's output (B, Hq, K, D) for queries at all positions, one query at a time."""
    query, key, value = qkv
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = torch.zeros_like(query)
    for b, q in itertools.product(range(query.shape[0]), range(query.shape[2])):
        if not tokens.real()[b, q]:
            continue
        seen = [k for k in range(tokens.length) if sees(kind, tokens, b, q, k)]
        sides = [seen]
        if kind[1] == "split":
            sides = [[k for k in seen if tokens.modality[b, k] == side] for side in (TEXT, IMAGE)]
        for side in filter(None, sides):
            weights = ((query[b, :, q, None] * key[b, :, side]).sum(-1) * query.shape[-1] ** -0.5).softmax(-1)
            out[b, :, q] += (weights[..., None] * value[b, :, side]).sum(1)
    return out


def noise(like: Tensor, seed: int = 11) -> Tensor:
    """Other numbers than `like` holds, and larger ones."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like) * 3


def without_images(tokens: Tokens) -> Tokens:
    """The same rows as plain text."""
    none = torch.full_like(tokens.modality, -1)
    return replace(tokens, modality=torch.zeros_like(tokens.modality), image_ids=none, unit_ids=none.clone())

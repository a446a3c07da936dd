"""Vision features -> language embeddings: the part that trains (arXiv 2309.14327, section 4.1).

Shapes: N images, T tokens an image from the encoder, P tokens an image in the language model, C the encoder's width, E
the embedding size. Every projector maps (N, T, C) to (N, P, E).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from visualchat.model.vision.resampler import Resampler, square_side


@dataclass(frozen=True)
class ProjectorShape:
    """What a projector takes and gives.

    Attributes:
        in_features: C.
        out_features: E.
        image_tokens: P.
    """

    in_features: int
    out_features: int
    image_tokens: int

    def __post_init__(self) -> None:
        for name, found in vars(self).items():
            if found < 1:
                raise ValueError(f"a projector's {name} must be at least 1, found {found}")


class Projector(nn.Module):
    """Base of all projectors.

    Attributes:
        shape: What it takes and gives.
    """

    shape: ProjectorShape

    def tokens(self, encoder_tokens: int) -> int:
        """How many tokens an image has after the projector, if the encoder gives so many."""
        return encoder_tokens

    @property
    def last_norm(self) -> nn.LayerNorm | None:
        """The layer norm whose output is the projector's, if there is one."""
        return None


class LinearProjector(Projector, nn.Linear):
    """The paper's projector: one linear map."""

    def __init__(self, shape: ProjectorShape) -> None:
        super().__init__(shape.in_features, shape.out_features)
        self.shape = shape


class LinearNormProjector(Projector, nn.Sequential):
    """The published code's `baseline`: a linear map, then a layer norm."""

    def __init__(self, shape: ProjectorShape) -> None:
        norm = nn.LayerNorm(shape.out_features, eps=1e-12)
        super().__init__(nn.Linear(shape.in_features, shape.out_features), norm)
        self.shape = shape

    @property
    def last_norm(self) -> nn.LayerNorm:
        norm = self[1]
        assert isinstance(norm, nn.LayerNorm)
        return norm


class MLPProjector(Projector, nn.Sequential):
    """LLaVA-1.5's: two linear maps with a GELU between them (arXiv 2310.03744, section 3.3)."""

    def __init__(self, shape: ProjectorShape) -> None:
        wide = shape.out_features
        super().__init__(nn.Linear(shape.in_features, wide), nn.GELU(), nn.Linear(wide, wide))
        self.shape = shape


class ViTProjector(Projector):
    """The published code's `vit`: one more layer of a CLIP encoder over an image's tokens, then the baseline.

    The layer is as wide as the features, with heads of 64 (larger where 64 does not fit) and an MLP of 4 × C.
    """

    def __init__(self, shape: ProjectorShape) -> None:
        super().__init__()
        self.shape = shape
        config = self.layer_config(shape.in_features)
        config._attn_implementation = "sdpa"
        self.layer = CLIPEncoderLayer(config)
        self.baseline = LinearNormProjector(shape)

    @staticmethod
    def layer_config(width: int) -> CLIPVisionConfig:
        """What the layer is, at that width."""
        return CLIPVisionConfig(hidden_size=width, intermediate_size=4 * width, num_attention_heads=_heads(width, 64))

    @property
    def last_norm(self) -> nn.LayerNorm:
        return self.baseline.last_norm

    def forward(self, features: Tensor) -> Tensor:
        """(N, P, E) from (N, P, C)."""
        return self.baseline(self.layer(features, None))


class PerceiverProjector(Projector):
    """The published code's `perceiver`: P learned queries attend to an image's tokens, then a layer norm.

    The queries and the patches stand on square grids; one class token before the patches is allowed. The attention has
    heads of 128 (larger where 128 does not fit).

    Raises:
        ValueError: P is not the size of a square grid, or E cannot hold positions on one.
    """

    def __init__(self, shape: ProjectorShape) -> None:
        super().__init__()
        self.shape = shape
        side, width = square_side(shape.image_tokens), shape.out_features
        if side is None:
            raise ValueError(
                "the perceiver's queries form a square grid: image_seq_length must be a square number such as 256, "
                f"found {shape.image_tokens}"
            )
        if width % 4:
            raise ValueError(f"the perceiver needs an embedding size that is a multiple of 4, found {width}")
        self.resampler = Resampler(shape.in_features, width, side, _heads(width, 128))
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def tokens(self, encoder_tokens: int) -> int:
        """P, whatever the encoder gives."""
        return self.shape.image_tokens

    @property
    def last_norm(self) -> nn.LayerNorm:
        return self.norm

    def forward(self, features: Tensor) -> Tensor:
        """(N, P, E) from (N, T, C)."""
        return self.norm(self.resampler(features))


def _heads(width: int, size: int) -> int:
    """How many heads of at least that size share the width."""
    return math.gcd(width, max(width // size, 1))


PROJECTORS: dict[str, Callable[[ProjectorShape], Projector]] = {
    "linear": LinearProjector,
    "linear_norm": LinearNormProjector,
    "mlp": MLPProjector,
    "vit": ViTProjector,
    "perceiver": PerceiverProjector,
}

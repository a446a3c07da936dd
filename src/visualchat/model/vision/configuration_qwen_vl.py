"""Configuration of the vision encoder inside Qwen-VL and Qwen-VL-Chat (arXiv 2308.12966); the defaults are theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

RESAMPLER_HEAD_SIZE = 128
"""Width of each head in Qwen-VL's resampler."""


class QwenVLVisionConfig(PreTrainedConfig):
    """Sizes of the encoder: a vision transformer and a resampler of its patches.

    Args:
        image_size: Side of an image in pixels.
        patch_size: Side of a patch in pixels.
        num_channels: Colour channels.
        width: Width of the transformer.
        num_hidden_layers: Blocks of the transformer.
        num_attention_heads: Heads in each block.
        intermediate_size: Width of the blocks' MLP.
        position_grid: Side of the grid of learned positions, resized to the patches' grid.
        query_grid: Side of the grid of queries; an image becomes `query_grid ** 2` tokens.
        hidden_size: Width of those tokens.
        num_resampler_heads: Heads of the resampler.
        layer_norm_eps: Of every layer norm.
        initializer_range: Standard deviation of fresh weights.

    Raises:
        ValueError: The sizes do not fit each other.
    """

    model_type = "qwen_vl_vision"
    base_config_key = "vision_config"

    image_size: int = 448
    patch_size: int = 14
    num_channels: int = 3
    width: int = 1664
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    intermediate_size: int = 8192
    position_grid: int = 16
    query_grid: int = 16
    hidden_size: int = 4096
    num_resampler_heads: int = 32
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for whole, part in (
            ("image_size", "patch_size"),
            ("width", "num_attention_heads"),
            ("hidden_size", "num_resampler_heads"),
        ):
            size, divisor = getattr(self, whole), getattr(self, part)
            if divisor < 1 or size < 1 or size % divisor:
                raise ValueError(f"{whole} must be a multiple of {part}, found {size} and {divisor}")

    @classmethod
    def from_qwen(cls, visual: Mapping[str, Any]) -> QwenVLVisionConfig:
        """From the dict `visual` of a Qwen-VL checkpoint's config.json.

        Raises:
            ValueError: A size is missing, or they do not fit each other.
        """
        needed = ("image_size", "patch_size", "width", "layers", "heads", "mlp_ratio", "output_dim")
        if absent := [name for name in needed if name not in visual]:
            raise ValueError(f"the checkpoint's visual configuration lacks {', '.join(absent)}: found {dict(visual)}")
        queries = visual.get("n_queries", 256)
        if round(queries**0.5) ** 2 != queries:
            raise ValueError(f"the resampler's queries form a square grid, found n_queries {queries}")
        return cls(
            image_size=visual["image_size"],
            patch_size=visual["patch_size"],
            width=visual["width"],
            num_hidden_layers=visual["layers"],
            num_attention_heads=visual["heads"],
            intermediate_size=int(visual["width"] * visual["mlp_ratio"]),
            query_grid=round(queries**0.5),
            hidden_size=visual["output_dim"],
            num_resampler_heads=visual["output_dim"] // RESAMPLER_HEAD_SIZE,
        )

"""The vision encoder inside Qwen-VL and Qwen-VL-Chat: a vision transformer and a resampler (arXiv 2308.12966).

Names of parameters are those of the checkpoints, without their prefix `transformer.visual.`; the checkpoints' last
matrix, `proj`, belongs to the language model that it was trained with and is left out.

Shapes: N images, P patches an image, W width of the transformer, Q queries, E width of the output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from visualchat.model.vision.configuration_qwen_vl import QwenVLVisionConfig
from visualchat.model.vision.resampler import CrossAttention, Resampler, resize_positions, square_side


class QwenVLAttention(nn.Module):
    """Self-attention whose fused projection holds query, key and value side by side for each head in turn."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(N, P, W) from (N, P, W)."""
        fused = (
            self.in_proj(hidden_states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        )  # (N, heads, P, 3 W / heads)
        attended = scaled_dot_product_attention(*fused.chunk(3, dim=-1))
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class QwenVLMLP(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, width: int, intermediate_size: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, intermediate_size)
        self.act = nn.GELU()
        self.c_proj = nn.Linear(intermediate_size, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(N, P, W) from (N, P, W)."""
        return self.c_proj(self.act(self.c_fc(hidden_states)))


class QwenVLBlock(GradientCheckpointingLayer):
    """A pre-norm transformer block."""

    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attn = QwenVLAttention(config.width, config.num_attention_heads)
        self.ln_2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = QwenVLMLP(config.width, config.intermediate_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(N, P, W) from (N, P, W)."""
        hidden_states = hidden_states + self.attn(self.ln_1(hidden_states))
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class QwenVLTransformer(nn.Module):
    """The blocks."""

    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(QwenVLBlock(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(N, P, W) from (N, P, W)."""
        for block in self.resblocks:
            hidden_states = block(hidden_states)
        return hidden_states


class QwenVLVisionModel(PreTrainedModel):
    """Images -> Q tokens each."""

    config_class = QwenVLVisionConfig
    config: QwenVLVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012 (transformers' own form)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["QwenVLBlock", "Resampler"]  # noqa: RUF012

    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__(config)
        self.conv1 = nn.Conv2d(config.num_channels, config.width, config.patch_size, config.patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(config.position_grid**2, config.width))
        self.ln_pre = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.transformer = QwenVLTransformer(config)
        self.attn_pool = Resampler(
            config.width, config.hidden_size, config.query_grid, config.num_resampler_heads, config.layer_norm_eps
        )
        self.ln_post = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, QwenVLVisionModel):
            init.normal_(module.positional_embedding, std=self.config.initializer_range)
        elif isinstance(module, CrossAttention | Resampler):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        """The convolution that makes the patches."""
        return self.conv1

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False, **kwargs: Any) -> BaseModelOutput:
        """Tokens (N, Q, E) as `last_hidden_state` from square images (N, 3, side, side), of any multiple of a patch.

        Raises:
            ValueError: An image is not square, its side is not a multiple of a patch, or hidden states are asked for,
                which stand before the resampler and are not tokens of width E.
        """
        if output_hidden_states:
            raise ValueError("Qwen-VL's encoder gives its resampled tokens only: leave vision_feature_layer null")
        patches = self.conv1(pixel_values).flatten(2).transpose(1, 2)  # (N, P, W)
        side = square_side(patches.shape[1])
        if side is None or set(pixel_values.shape[2:]) != {side * self.config.patch_size}:
            raise ValueError(
                f"Qwen-VL's encoder needs square images of a multiple of {self.config.patch_size} pixels, "
                f"found {tuple(pixel_values.shape[2:])}"
            )
        hidden_states = self.ln_pre(patches + resize_positions(self.positional_embedding, side))
        hidden_states = self.transformer(hidden_states)
        return BaseModelOutput(last_hidden_state=self.ln_post(self.attn_pool(hidden_states)))


def expected_shapes(config: QwenVLVisionConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of the encoder, told without building it."""
    width, mlp, out = config.width, config.intermediate_size, config.hidden_size

    def layer_norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (size,), f"{name}.bias": (size,)}

    def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (width, config.num_channels, config.patch_size, config.patch_size),
        "positional_embedding": (config.position_grid**2, width),
        "attn_pool.query": (config.query_grid**2, out),
        "attn_pool.pos_embed": (config.query_grid**2, out),
        "attn_pool.kv_proj.weight": (out, width),
        "attn_pool.attn.in_proj_weight": (3 * out, out),
        "attn_pool.attn.in_proj_bias": (3 * out,),
        **linear("attn_pool.attn.out_proj", out, out),
        **layer_norm("ln_pre", width),
    }
    for name in ("attn_pool.ln_q", "attn_pool.ln_kv", "ln_post"):
        shapes |= layer_norm(name, out)
    for number in range(config.num_hidden_layers):
        block = f"transformer.resblocks.{number}"
        shapes |= layer_norm(f"{block}.ln_1", width) | layer_norm(f"{block}.ln_2", width)
        shapes |= linear(f"{block}.attn.in_proj", width, 3 * width) | linear(f"{block}.attn.out_proj", width, width)
        shapes |= linear(f"{block}.mlp.c_fc", width, mlp) | linear(f"{block}.mlp.c_proj", mlp, width)
    return shapes

"""A language model that begins by computing what a smaller one computes, so that training continues from there.

Layers above the smaller model's add nothing to their input at first. Dimensions beyond its width stay zero at first:
nothing writes to them, and the norms' weights make up for what the zeros take from the mean square. What reads them is
random, so that all of it learns (as in Net2Net, arXiv 1511.05641).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase


@torch.no_grad()
def grow(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    start: LlamaForCausalLM,
    start_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Give a new model what a smaller one knows; a token that the smaller one lacks keeps its fresh embedding.

    Args:
        model: With at least as many layers, heads and dimensions, and heads of the same size.
        tokenizer: Its.
        start: The smaller one.
        start_tokenizer: Its.
    """
    assert model.config.head_dim == start.config.head_dim, "heads of one size turn by the same angles"
    width = start.config.hidden_size
    scale = (width / model.config.hidden_size) ** 0.5
    known = start_tokenizer.get_vocab()
    shared = [(new, known[token]) for token, new in tokenizer.get_vocab().items() if token in known]
    new, old = torch.tensor(shared).T
    embedding = model.model.embed_tokens.weight
    embedding[:, width:] = 0
    embedding[new, :width] = start.model.embed_tokens.weight[old]
    _grow_norm(model.model.norm, start.model.norm, scale)
    for layer, below in zip(model.model.layers, start.model.layers, strict=False):
        _grow_norm(layer.input_layernorm, below.input_layernorm, scale)
        _grow_norm(layer.post_attention_layernorm, below.post_attention_layernorm, scale)
        for name in ("q_proj", "k_proj", "v_proj"):
            _copy(getattr(layer.self_attn, name).weight, getattr(below.self_attn, name).weight)
        for name in ("gate_proj", "up_proj"):
            _copy(getattr(layer.mlp, name).weight, getattr(below.mlp, name).weight)
        for writer, writer_below in (
            (layer.self_attn.o_proj, below.self_attn.o_proj),
            (layer.mlp.down_proj, below.mlp.down_proj),
        ):
            writer.weight.zero_()
            _copy(writer.weight, writer_below.weight)
    for layer in model.model.layers[len(start.model.layers) :]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


def _copy(weight: Tensor, smaller: Tensor) -> None:
    """Write a smaller matrix into the corner of a larger one."""
    weight[: smaller.shape[0], : smaller.shape[1]] = smaller


def _grow_norm(norm: nn.Module, smaller: nn.Module, scale: float) -> None:
    """Weights of a norm over more dimensions, the further ones zero, that gives what the smaller one gives."""
    weight, old = norm.get_parameter("weight"), smaller.get_parameter("weight")
    weight[: len(old)] = old * scale

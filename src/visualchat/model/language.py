"""Any causal language model by its path, as the joint model needs it: head untied, vocabulary grown, bits chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from visualchat.model.remote_code import load_without_code
from visualchat.model.sharding import gathered, is_split


def load_language_model(
    path: str | Path, dtype: torch.dtype, *, bits: int | None = None, vocab_size: int = 0
) -> PreTrainedModel:
    """The language model at a path with its weights.

    Args:
        path: Folder or Hub name.
        dtype: Of all weights.
        bits: 8 or 4 to hold its linear layers but the head in so many bits, frozen; needs bitsandbytes.
        vocab_size: The least number of token embeddings.

    Raises:
        ValueError: `bits` is neither 8 nor 4; or the layers' sizes do not suit 4 bits on a CPU.
    """
    with _default_dtype_fp32():
        model: PreTrainedModel = load_without_code(
            AutoModelForCausalLM.from_pretrained, path, dtype=dtype, **quantized_loading(bits, dtype)
        )
    keep_as_stored(model)
    grow_vocabulary(model, vocab_size)
    untie_head(model)
    return model


BLOCK = 64
"""Weights of a row that share one scale in 4 bits, in their order; bitsandbytes' own number."""


def keep_as_stored(model: nn.Module) -> None:
    """Let 4-bit weights be computed with as they were stored, whatever the CPU.

    On CPUs with AVX512-BF16 bitsandbytes packs them for inference when they are first evaluated: they then round to
    bf16 and give no gradient when training continues. On CPUs with AVX512 it takes the wrong scales in rows that end in
    mid-block.

    Raises:
        ValueError: On a CPU, a row is not whole blocks.
    """
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            if module.weight.device.type == "cpu" and module.in_features % BLOCK:
                raise ValueError(
                    f"a CPU computes with 4 bits in whole blocks of {BLOCK} weights, {name} has rows of "
                    f"{module.in_features}: choose model/quantization=int8 or none"
                )


@contextmanager
def _default_dtype_fp32() -> Iterator[None]:
    """Let what is made from plain numbers be fp32, whatever the trainer's precision.

    bitsandbytes makes the borders between 4-bit codes when it first needs them, in torch's default type, and keeps
    them: made in bf16 they would move one weight in a hundred to the next code.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def quantized_loading(bits: int | None, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of transformers' `from_pretrained` for weights of 8 bits or 4 (NF4); none for None.

    Raises:
        ValueError: Another number of bits.
    """
    if bits is None:
        return {}
    if bits not in (4, 8):
        raise ValueError(f"language_bits={bits}, expected 8, 4 or None")
    settings = BitsAndBytesConfig(
        load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": settings, "device_map": {"": device}}


def grow_vocabulary(language_model: PreTrainedModel, size: int) -> None:
    """Give embedding and head at least `size` rows; each new one is the mean of the old, whatever the seed."""
    old = language_model.get_input_embeddings().num_embeddings  # the weight itself may be split over ranks
    assert isinstance(old, int)
    if size <= old:
        return
    language_model.resize_token_embeddings(size, mean_resizing=False)
    for part in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
        with torch.no_grad():
            for weight in part.parameters():  # a head may have a bias
                assert not is_split(weight)  # transformers makes grown parts whole on each rank
                weight[old:] = weight[:old].mean(dim=0)


def untie_head(language_model: PreTrainedModel) -> None:
    """Give the language head a weight of its own, if it shares the token embedding's; the logits stay the same."""
    if language_model.config.tie_word_embeddings:
        head = language_model.get_output_embeddings()
        with gathered(head.weight) as weight:
            head.weight = nn.Parameter(weight.clone())
        language_model.config.tie_word_embeddings = False

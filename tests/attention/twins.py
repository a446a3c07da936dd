"""Tiny random language models of six families and a tiny LLaVA, for the tests of attention inside transformers."""

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "initializer_range": 0.3,  # spread enough that answers depend on what was asked
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 49,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "gemma": GemmaConfig(**SIZES, head_dim=8),
    "granite": GraniteConfig(**SIZES, attention_multiplier=0.05),  # its scores' factor is not D ** -0.5
}
IMAGE_TOKEN = 48


def language_model(name: str, **config) -> PreTrainedModel:
    """A seeded model of `CONFIGS`, with transformers' own attention."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name].__class__(**{**CONFIGS[name].to_dict(), **config})).eval()


def llava() -> LlavaForConditionalGeneration:
    """A seeded LLaVA whose images are 8 x 8 pixels and 4 tokens."""
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**SIZES), image_token_id=IMAGE_TOKEN, image_seq_length=4
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():  # images that matter
        model.model.multi_modal_projector.linear_2.weight.mul_(20)
    return model


def prompt() -> dict[str, Tensor]:
    """Two rows of 14 tokens: ids, what they are, and their units (label and image)."""
    ids = torch.randint(2, 47, (2, 14), generator=torch.Generator().manual_seed(3))
    types, units = torch.zeros_like(ids), torch.full_like(ids, -1)
    types[:, 3:7], types[1, 9:11] = 1, 1
    units[:, 2:7], units[1, 8:11] = 0, 1
    return {"input_ids": ids, "mm_token_type_ids": types, "unit_ids": units}


def left_padded(inputs: dict[str, Tensor], by: int) -> dict[str, Tensor]:
    """The same rows behind `by` padding tokens, with the attention mask that tells."""
    gap = {"input_ids": 0, "mm_token_type_ids": 0, "unit_ids": -1}
    padded = {name: torch.nn.functional.pad(t, (by, 0), value=gap[name]) for name, t in inputs.items() if name in gap}
    return {**inputs, **padded, "attention_mask": (padded["input_ids"] != 0).long()}

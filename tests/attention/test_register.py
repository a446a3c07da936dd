"""The family inside transformers' language models, without a fork of any of them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from visualchat.attention import implementation_name

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
    "initializer_range": 0.3,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"}),
    "qwen3": Qwen3Config(**SIZES),
}
MODALITY = torch.tensor([[0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0]])


def language_model(name: str, attention: str):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention).eval()


def embeddings(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 12, model.config.hidden_size, generator=generator)


@pytest.mark.parametrize("name", CONFIGS)
def test_text_only_equals_the_models_own_causal_attention(name):
    found, expected = (
        language_model(name, attention)(inputs_embeds=torch.ones(1, 9, 32).cumsum(1)).logits
        for attention in ("mmca_sdpa", "eager")
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_fast_and_readable_forms_agree_in_a_whole_model(name):
    found, expected = (
        (model := language_model(name, attention))(inputs_embeds=embeddings(model), key_modality=MODALITY).logits
        for attention in ("mmca_sdpa", "mmca_eager")
    )
    causal = (model := language_model(name, "eager"))(inputs_embeds=embeddings(model)).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - causal).abs().max() > 0.1


def states(model, embeds, modality, layer):
    """Key before rotary embedding and value of one layer, for every position."""
    seen = {}
    attention = model.model.layers[layer].self_attn
    hooks = [
        getattr(attention, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        for name in ("k_proj", "v_proj")
    ]
    model(inputs_embeds=embeds, key_modality=modality)
    for hook in hooks:
        hook.remove()
    return seen["k_proj"], seen["v_proj"]


@pytest.mark.parametrize("attention", ["mmca_sdpa", "mmca_eager"])
def test_an_images_states_are_the_same_bits_anywhere(attention):
    """Two different dialogues, two different positions: every layer's keys (before rotation) and values agree."""
    model = language_model("llama", attention)
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(4, 32, generator=generator)
    one, other = (torch.randn(1, 12, 32, generator=generator) for _ in range(2))
    one[0, 2:6], other[0, 7:11] = image, image
    modality_one, modality_other = torch.zeros(1, 12, dtype=torch.long), torch.zeros(1, 12, dtype=torch.long)
    modality_one[0, 2:6] = 1
    modality_other[0, 7:11] = 1
    modality_other[0, :2] = 1
    for layer in range(3):
        here = states(model, one, modality_one, layer)
        there = states(model, other, modality_other, layer)
        for a, b in zip(here, there, strict=True):
            assert torch.equal(a[0, 2:6], b[0, 7:11])


def test_what_it_cannot_honour_is_refused():
    model = AutoModelForCausalLM.from_config(MistralConfig(**SIZES, sliding_window=4), attn_implementation="mmca_sdpa")
    with pytest.raises(ValueError, match="cannot honour sliding_window=4 of MistralAttention"):
        model(inputs_embeds=embeddings(model))
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, attention_dropout=0.1))
    model.set_attn_implementation("mmca_sdpa")
    with pytest.raises(ValueError, match=r"has no dropout, found 0\.1"):
        model.train()(inputs_embeds=embeddings(model))
    with pytest.raises(ValueError, match=r"padding mask of shape \(B, K\), found \(2, 1, 12, 12\)"):
        model.eval()(inputs_embeds=embeddings(model), attention_mask=torch.ones(2, 1, 12, 12, dtype=torch.bool))


def test_names():
    assert implementation_name("causal") == "sdpa"
    assert implementation_name("mmca", "eager") == "mmca_eager"
    with pytest.raises(ValueError, match="unknown attention kind 'MMCA'"):
        implementation_name("MMCA")
    with pytest.raises(ValueError, match="unknown implementation 'flash'"):
        implementation_name("causal", "flash")

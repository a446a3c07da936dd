"""Names, and what the family refuses inside transformers rather than compute something else."""

import pytest
import torch
from twins import language_model, prompt

from visualchat.attention import EarlyLayers, enable, implementation_name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (("mistral", {"sliding_window": 4}), "cannot honour sliding_window=4 of MistralAttention"),
        (("llama", {"attention_dropout": 0.1}), r"has no dropout, found 0\.1"),
    ],
)
def test_what_it_cannot_honour_is_refused(config, message):
    name, changes = config
    model = language_model(name, **changes).train()
    enable(model, "mmca")
    with pytest.raises(ValueError, match=message):
        model(**prompt())


def test_a_mask_of_four_dimensions_is_refused():
    model = language_model("llama")
    enable(model, "mmca")
    with pytest.raises(ValueError, match=r"padding mask of shape \(B, K\), found \(2, 1, 14, 14\)"):
        model(**prompt(), attention_mask=torch.ones(2, 1, 14, 14, dtype=torch.bool))


def test_a_filled_cache_without_the_keys_modality_is_refused():
    model, inputs = language_model("llama"), prompt()
    enable(model, "mmca")
    cache = model(**inputs).past_key_values
    with pytest.raises(ValueError, match=r"key_modality \(B, K\) must tell the modality of cached and new tokens"):
        model(inputs["input_ids"][:, :1], mm_token_type_ids=torch.zeros(2, 1), past_key_values=cache)


def test_units_that_a_kind_needs_are_asked_for():
    model, inputs = language_model("llama"), prompt()
    enable(model, "unit")
    del inputs["unit_ids"]
    with pytest.raises(ValueError, match="image context 'unit' needs unit_ids"):
        model(**inputs)


def test_names():
    assert implementation_name("causal") == "causal_sdpa"
    assert implementation_name("mmca_joint", "eager", EarlyLayers("image", 8)) == "image_8_mmca_joint_eager"
    assert implementation_name("causal", "flex") == "flex_attention"
    assert implementation_name("mmca", "eager") == "mmca_eager"
    with pytest.raises(ValueError, match="unknown attention kind 'MMCA'"):
        implementation_name("MMCA")
    with pytest.raises(ValueError, match="unknown implementation 'flash'"):
        implementation_name("causal", "flash")
    with pytest.raises(ValueError, match="unknown attention kind 'MMCA'"):
        implementation_name("mmca", early=EarlyLayers("MMCA", 1))
    with pytest.raises(ValueError, match="unknown attention kind 'MMCA'"):
        enable(language_model("llama"), "MMCA")


def test_tokens_that_nobody_tells_apart_are_said_to_be_text(caplog):
    from transformers.utils import logging

    model, inputs = language_model("llama"), prompt()
    enable(model, "mmca")
    del inputs["mm_token_type_ids"]
    logging.enable_propagation()  # else pytest does not see transformers' logger
    try:
        logging.get_logger("transformers").warning_once.__func__.cache_clear()
        model(**inputs)
    finally:
        logging.disable_propagation()
    assert "mm_token_type_ids are not given: every token counts as text" in caplog.text

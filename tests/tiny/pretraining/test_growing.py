"""A grown language model computes what the smaller one computes."""

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from visualchat.tiny import backbone
from visualchat.tiny.pretraining.growing import grow
from visualchat.tiny.pretraining.tokenizer import train_tokenizer


@pytest.mark.parametrize(("layers", "heads"), [(4, 4), (6, 4), (6, 6)])
def test_a_deeper_and_wider_model_begins_as_the_smaller_one(layers, heads):
    small = LlamaForCausalLM.from_pretrained(backbone("language_causal"), dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(backbone("language_causal"))
    words = train_tokenizer(hops=True, dialogues=60)
    config = LlamaConfig(
        **{
            **small.config.to_dict(),
            "vocab_size": len(words),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "hidden_size": 32 * heads,
            "intermediate_size": 96 * heads,
            "head_dim": 32,
            "tie_word_embeddings": True,
        }
    )
    model = LlamaForCausalLM(config).double().eval()
    grow(model, words, small, tokenizer)
    text = "### Image 1:\na red circle top-left\n\n### Question:\nWhat colour is the circle?\n\n### Answer:\n"
    tokens = tokenizer.tokenize(text)
    assert tokens == words.tokenize(text)
    with torch.no_grad():
        expected = small(torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])).logits
        found = model(torch.tensor([words.convert_tokens_to_ids(tokens)])).logits
    shared = sorted(set(tokenizer.get_vocab()) & set(words.get_vocab()))
    # The mean square is over a float64 sum of other length, and its epsilon stands beside it: equal but for that.
    torch.testing.assert_close(
        found[..., words.convert_tokens_to_ids(shared)],
        expected[..., tokenizer.convert_tokens_to_ids(shared)],
        rtol=1e-3,
        atol=1e-3,
    )
    assert tokenizer.decode(expected[0, -1].argmax()) == words.decode(found[0, -1].argmax()) == "red"

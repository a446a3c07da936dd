"""Gated cross-attention in six families of decoders: the base bit for bit, no image too early, cache, training."""

import itertools

import pytest
import torch
from twins import CONFIGS, language_model, left_padded, prompt

from visualchat.attention import GatedCrossAttention, add_cross_attention, disable, enable, remove_cross_attention

F = 12  # size of an image's states
models = pytest.mark.parametrize("name", CONFIGS)


def with_cross(name, *, trained=True, **config):
    model = language_model(name, **config)
    layers = add_cross_attention(model, every=2, image_size=F)
    for number, layer in enumerate(layers):
        generator = torch.Generator().manual_seed(number)
        for parameter in layer.parameters():
            if parameter.ndim > 1 or (trained and parameter.numel() == 1):  # matrices, and gates where they are open
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5 + 0.2
    return model, layers


def dialogue():
    """Two rows of 14 tokens; images before tokens 3 and 9 of row 0, before token 6 of row 1, which has one image."""
    states = torch.randn(2, 2, 5, F, generator=torch.Generator().manual_seed(8))
    return {
        "input_ids": prompt()["input_ids"],
        "image_states": states,
        "image_positions": torch.tensor([[3, 9], [6, -1]]),
    }


def logits(model, inputs):
    return model(**inputs).logits


@models
def test_an_untrained_model_equals_its_base_bit_for_bit(name):
    base = language_model(name)
    model, _ = with_cross(name, trained=False)
    text = {"input_ids": dialogue()["input_ids"]}
    assert torch.equal(logits(model, dialogue()), logits(base, text))
    assert torch.equal(logits(model, text), logits(base, text))
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**dialogue(), **options), base.generate(**text, **options))


@models
def test_a_token_sees_only_the_images_before_it(name):
    model, _ = with_cross(name)
    inputs = dialogue()
    found = logits(model, inputs)
    text = logits(model, {"input_ids": inputs["input_ids"]})
    # Before a row's first image, and in a row without one: no bit of it.
    assert torch.equal(found[0, :3], text[0, :3])
    assert torch.equal(found[1, :6], text[1, :6])
    assert (found[0, 3] - text[0, 3]).abs().max() > 1e-2
    assert (found[1, 6] - text[1, 6]).abs().max() > 1e-2
    for row, image, first in ((0, 0, 3), (0, 1, 9), (1, 0, 6), (1, 1, 14)):
        changed = inputs["image_states"].clone()
        changed[row, image] = torch.randn(5, F, generator=torch.Generator().manual_seed(1)) * 3
        other = logits(model, {**inputs, "image_states": changed})
        assert torch.equal(other[row, :first], found[row, :first])
        assert torch.equal(other[1 - row], found[1 - row])
        if first < 14:
            assert (other[row, first] - found[row, first]).abs().max() > 1e-2


def test_the_layer_equals_its_formula():
    """x + tanh(a)·softmax(QK')V over the states seen, written out for one token, then the gated feed-forward part."""
    torch.manual_seed(0)
    layer = GatedCrossAttention(8, F, heads=2, head_size=3).double()
    layer.attention_gate.data.fill_(0.7)
    layer.feed_forward_gate.data.fill_(-0.4)
    hidden, states = torch.randn(1, 2, 8).double(), torch.randn(1, 2, 4, F).double()
    found = layer(hidden, states, torch.tensor([[[False, False], [True, False]]]))
    assert torch.equal(found[0, 0], hidden[0, 0])
    x, image = hidden[0, 1], layer.image_norm(states[0, 0])
    query = layer.query(layer.attention_norm(x)).view(2, 3)
    key, value = layer.key(image).view(4, 2, 3), layer.value(image).view(4, 2, 3)
    weights = (torch.einsum("hd,mhd->hm", query, key) / 3**0.5).softmax(-1)
    x = x + torch.tensor(0.7).double().tanh() * layer.output(torch.einsum("hm,mhd->hd", weights, value).flatten())
    x = x + torch.tensor(-0.4).double().tanh() * layer.feed_forward(x)
    torch.testing.assert_close(found[0, 1], x, atol=1e-7, rtol=1e-7)  # the gates were stored in float32


@models
def test_generation_is_the_same_cached_uncached_chunked_and_padded(name):
    model, _ = with_cross(name)
    inputs = dialogue()

    def new_tokens(inputs, **options):
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False, **options)
        return out[:, inputs["input_ids"].shape[1] :]

    expected = new_tokens(inputs)
    assert not torch.equal(new_tokens({"input_ids": inputs["input_ids"]}), expected)
    assert torch.equal(new_tokens(inputs, use_cache=False), expected)
    assert torch.equal(new_tokens(inputs, prefill_chunk_size=5), expected)
    assert torch.equal(new_tokens(inputs, cache_implementation="static"), expected)
    padded = left_padded(inputs, 3)
    padded["image_positions"] = torch.where(inputs["image_positions"] < 0, -1, inputs["image_positions"] + 3)
    assert torch.equal(new_tokens(padded), expected)


def gradients(model, inputs):
    model.zero_grad()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@models
def test_gates_learn_first_and_then_everything(name):
    closed, _ = with_cross(name, trained=False)
    grads = {k: g for k, g in gradients(closed.train(), dialogue()).items() if "gated_cross_attention" in k}
    assert all((g.abs().max() > 0) == k.endswith("_gate") for k, g in grads.items())
    opened, _ = with_cross(name)
    inputs = dialogue()
    inputs["image_states"].requires_grad_()
    grads = gradients(opened.train(), inputs)
    assert all(g.isfinite().all() and g.abs().max() > 0 for k, g in grads.items() if "gated_cross_attention" in k)
    seen = inputs["image_states"].grad.abs().amax((2, 3)) > 0
    assert seen.tolist() == [[True, True], [True, False]]  # the image that is padding has no influence


@models
def test_gradient_checkpointing_changes_nothing(name):
    model, _ = with_cross(name)
    expected = gradients(model.train(), dialogue())
    model.activation_checkpointing_enable()
    for key, found in gradients(model, dialogue()).items():
        assert torch.equal(found, expected[key])


def test_the_new_layers_are_saved_and_come_back(tmp_path):
    model, layers = with_cross("llama")
    expected = logits(model, dialogue())
    assert len(layers) == 1  # before the second of three layers
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "model.safetensors")
    assert "model.layers.1.gated_cross_attention.attention_gate" in saved
    again = language_model("llama")
    add_cross_attention(again, every=2, image_size=F)
    again.load_state_dict(saved)
    assert torch.equal(logits(again, dialogue()), expected)


@models
def test_remove_gives_back_the_base(name):
    base, (model, _) = language_model(name), with_cross(name)
    remove_cross_attention(model)
    text = {"input_ids": dialogue()["input_ids"]}
    assert model.state_dict().keys() == base.state_dict().keys()
    assert torch.equal(logits(model, text), logits(base, text))
    assert "prepare_inputs_for_generation" not in model.__dict__
    assert not any(module._forward_pre_hooks for module in model.modules())
    remove_cross_attention(model)  # nothing to do


def test_what_cannot_be_is_refused():
    model, _ = with_cross("llama")
    with pytest.raises(ValueError, match="has gated cross-attention layers"):
        add_cross_attention(model, every=2, image_size=F)
    with pytest.raises(ValueError, match="every must be between 1 and the model's 3 layers, found 4"):
        add_cross_attention(language_model("llama"), every=4, image_size=F)
    inputs = dialogue()
    with pytest.raises(ValueError, match="must be given together"):
        model(input_ids=inputs["input_ids"], image_states=inputs["image_states"])
    inputs["image_positions"] = inputs["image_positions"][:, :1]
    with pytest.raises(ValueError, match=r"found \(2, 2, 5, 12\) and \(2, 1\) for 2 rows"):
        model(**inputs)


def together():
    """A dialogue with images in the sequence, as `enable` takes them, and images outside of it."""
    return {**prompt(), **{name: t for name, t in dialogue().items() if name != "input_ids"}}


def answer(model, inputs):
    return model.generate(**inputs, max_new_tokens=5, do_sample=False)


@pytest.mark.parametrize("order", [*itertools.permutations(["enable", "add"])], ids="-".join)
@pytest.mark.parametrize("undone", [*itertools.permutations(["disable", "remove"])], ids="-".join)
def test_kinds_and_cross_attention_come_and_go_in_any_order(order, undone):
    """With both on, `generate` takes what both need; each undone, in any order, leaves the other as if alone."""
    text, inputs = {"input_ids": prompt()["input_ids"]}, together()
    own, crossed = language_model("llama"), with_cross("llama")[0]
    switched, both = language_model("llama"), with_cross("llama")[0]
    enable(switched, "unit")
    enable(both, "unit")
    expected = logits(both, inputs), answer(both, inputs)
    assert (expected[0] - logits(crossed, dialogue())).abs().max() > 0.1

    model = language_model("llama")
    steps = {
        "add": lambda: add_cross_attention(model, every=2, image_size=F),
        "enable": lambda: enable(model, "unit"),
        "remove": lambda: remove_cross_attention(model),
        "disable": lambda: disable(model),
    }
    for step in order:
        steps[step]()
    model.load_state_dict(both.state_dict())
    assert torch.equal(logits(model, inputs), expected[0])
    assert torch.equal(answer(model, inputs), expected[1])
    steps[undone[0]]()
    alone, given = (crossed, dialogue()) if undone[0] == "disable" else (switched, prompt())
    assert torch.equal(logits(model, given), logits(alone, given))
    assert torch.equal(answer(model, given), answer(alone, given))
    steps[undone[1]]()
    assert torch.equal(logits(model, text), logits(own, text))
    assert torch.equal(answer(model, text), answer(own, text))
    assert "prepare_inputs_for_generation" not in model.__dict__
    assert not any(module._forward_pre_hooks for module in model.modules())

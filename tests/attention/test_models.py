"""The family inside whole models of transformers: generation, training, and what an image's states depend on."""

import pytest
import torch
from transformers import DynamicCache
from twins import CONFIGS, IMAGE_TOKEN, language_model, left_padded, llava, prompt

from visualchat.attention import EarlyLayers, disable, enable

KINDS = ("mmca", "mmca_joint", "unit", "mmca_reference")
models = pytest.mark.parametrize("name", CONFIGS)
kinds = pytest.mark.parametrize("kind", KINDS)


def generated(model, inputs, **options):
    """Tokens (B, N) and the logits (N, B, V) they were taken from."""
    options |= {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    out = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits)


def same(found, expected):
    """Equal tokens, for equal reasons: float32 through three layers, logits of order 10."""
    torch.testing.assert_close(found[1], expected[1], atol=1e-3, rtol=1e-4)
    return torch.equal(found[0], expected[0])


def logits(model, inputs):
    return model(**inputs).logits


@kinds
@models
def test_greedy_generation_is_the_same_however_it_runs(name, kind):
    model, inputs = language_model(name), prompt()
    enable(model, kind)
    expected = generated(model, inputs)
    assert len(expected[0].unique()) > 1  # no model that says one word whatever it sees
    assert same(generated(model, inputs, use_cache=False), expected)
    assert same(generated(model, inputs, prefill_chunk_size=5), expected)
    assert same(generated(model, inputs, cache_implementation="static"), expected)
    assert same(generated(model, left_padded(inputs, 3)), expected)


@kinds
@models
def test_fast_and_readable_forms_agree(name, kind):
    model, inputs = language_model(name), left_padded(prompt(), 2)
    real = inputs["attention_mask"].bool()
    enable(model, kind, "sdpa")
    found = logits(model, inputs)[real]
    enable(model, kind, "eager")
    expected = logits(model, inputs)[real]
    # float32 through three layers, logits of order 10
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


@kinds
@models
def test_text_only_equals_the_models_own_attention_and_images_do_not(name, kind):
    model, inputs = language_model(name), prompt()
    text = {"input_ids": inputs["input_ids"]}
    own = logits(model, text)
    enable(model, kind)
    torch.testing.assert_close(logits(model, text), own, atol=1e-3, rtol=1e-4)
    assert (logits(model, inputs) - own).abs().max() > 0.1


@models
def test_disable_gives_back_every_bit(name):
    model, inputs = language_model(name), prompt()
    text = {"input_ids": inputs["input_ids"]}
    before, (tokens, _) = logits(model, text), generated(model, text)
    for kind in KINDS:
        enable(model, kind)  # a second call switches over, with nothing of the first left
    disable(model)
    assert torch.equal(logits(model, text), before)
    assert torch.equal(generated(model, text)[0], tokens)
    assert "prepare_inputs_for_generation" not in model.__dict__
    assert not model._forward_pre_hooks
    disable(model)  # nothing to do


def llava_prompt():
    """Two images in row 0, one in row 1, which is padded on the left."""
    image = [IMAGE_TOKEN] * 4
    rows = [[1, 5, *image, 7, *image, 9, 3], [0, 0, 0, 1, 5, 6, *image, 4, 8, 3]]
    ids = torch.tensor([rows[0], rows[1]])
    pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize("kind", ["mmca", "mmca_joint", "mmca_reference"])
def test_llava_finds_its_images_by_its_own_token(kind):
    model, inputs = llava(), llava_prompt()
    told = {**inputs, "mm_token_type_ids": (inputs["input_ids"] == IMAGE_TOKEN).long()}
    real = inputs["attention_mask"].bool()
    causal = logits(model, inputs)
    enable(model, kind)
    found = logits(model, inputs)
    assert torch.equal(found, logits(model, told))
    assert (found - causal)[real].abs().max() > 0.1
    expected = generated(model, inputs)
    assert same(generated(model, told), expected)
    assert same(generated(model, inputs, use_cache=False), expected)
    assert same(generated(model, inputs, cache_implementation="static"), expected)
    assert model.model.vision_tower.config._attn_implementation == "sdpa"  # the tower keeps its own
    disable(model)
    assert torch.equal(logits(model, inputs), causal)


def loss_and_gradients(model, inputs):
    model.zero_grad()
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("kind", ["mmca", "unit"])
@models
def test_gradient_checkpointing_changes_nothing(name, kind):
    model, inputs = language_model(name).train(), prompt()
    enable(model, kind)
    expected = loss_and_gradients(model, inputs)
    model.activation_checkpointing_enable()
    for found, wanted in zip(loss_and_gradients(model, inputs), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mmca", "mmca_joint", "unit"])
def test_torch_compile_of_a_training_step(kind):
    """Traced and differentiated by torch.compile; no compiler for the machine is needed for that."""
    model, inputs = language_model("llama", num_hidden_layers=2).train(), prompt()
    enable(model, kind)
    expected = loss_and_gradients(model, inputs)
    compiled = torch.compile(model, backend="aot_eager")
    for turn in range(2):  # the second runs what the first compiled, on another batch
        if turn:
            inputs = {key: t.flip(0) for key, t in inputs.items()}
            expected = loss_and_gradients(model, inputs)
        model.zero_grad()
        loss = compiled(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        found = [loss.detach(), *(p.grad for p in model.parameters())]
        for got, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)  # float32, fused in another order


@kinds
@models
def test_dialogues_packed_by_positions_equal_single_ones(name, kind):
    """transformers' way to pack: `position_ids` that start again and no attention mask."""
    model, inputs = language_model(name), prompt()
    enable(model, kind)
    single = logits(model, inputs)
    packed = {key: t.reshape(1, -1) for key, t in inputs.items()}
    found = logits(model, {**packed, "position_ids": torch.arange(14).repeat(2)[None], "use_cache": False})
    torch.testing.assert_close(found.view_as(single), single, atol=1e-3, rtol=1e-4)  # as above


# What an image's states depend on (the exact reuse of images rests on it).

SPAN = 6  # a unit: two label tokens and four image tokens


def dialogue_with_unit(model, at, unit, seed):
    """A random dialogue of 16 tokens in which `unit` (SPAN, hidden) stands at `at`, another image elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(1, 16, model.config.hidden_size, generator=generator)
    embeds[0, at : at + SPAN] = unit
    types, images, units = torch.zeros(1, 16, dtype=torch.long), torch.full((1, 16), -1), torch.full((1, 16), -1)
    other = 0 if at > 7 else 9
    for number, start in enumerate(sorted((at, other))):
        units[0, start : start + SPAN] = number
        types[0, start + 2 : start + SPAN] = 1
        images[0, start + 2 : start + SPAN] = number
    return {"inputs_embeds": embeds, "mm_token_type_ids": types, "image_ids": images, "unit_ids": units}


def states(model, inputs):
    """Key before rotary embedding and value of every layer, (2 * layers, S, heads * D)."""
    seen = []
    hooks = [
        getattr(layer.self_attn, name).register_forward_hook(lambda _, __, out: seen.append(out[0].detach()))
        for layer in model.model.layers
        for name in ("k_proj", "v_proj")
    ]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


def two_places(model):
    """The same unit at two positions of two dialogues: inputs and the unit's place in each."""
    unit = torch.randn(SPAN, model.config.hidden_size, generator=torch.Generator().manual_seed(9))
    return [(dialogue_with_unit(model, at, unit, seed), slice(at, at + SPAN)) for at, seed in ((1, 4), (8, 5))]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["mmca", "mmca_joint"])
def test_an_images_states_are_the_same_bits_anywhere(kind, implementation):
    model = language_model("llama")
    enable(model, kind, implementation)
    here, there = (states(model, inputs)[:, place][:, 2:] for inputs, place in two_places(model))
    assert torch.equal(here, there)


def test_the_first_layers_of_any_model_attend_by_another_kind():
    """Image, then self: the image's states are its own; cached or not, eager or fast, it is one model."""
    early = EarlyLayers("image", 2)
    model, inputs = language_model("llama"), prompt()
    ids = {"image_ids": inputs["unit_ids"].masked_fill(inputs["mm_token_type_ids"] == 0, -1)}
    found = {}
    for kind, first in (("mmca_joint", early), ("mmca_joint", None), ("image", None)):
        enable(model, kind, early=first)
        found[kind, first] = logits(model, {**inputs, **ids})
    assert min((found["mmca_joint", early] - other).abs().max() for other in [*found.values()][1:]) > 0.01
    enable(model, "mmca_joint", "eager", early)
    torch.testing.assert_close(logits(model, {**inputs, **ids}), found["mmca_joint", early], atol=1e-3, rtol=1e-4)
    enable(model, "mmca_joint", early=early)
    expected = generated(model, {**inputs, **ids})
    assert same(generated(model, {**inputs, **ids}, use_cache=False), expected)
    here, there = (states(model, given)[:, place][:, 2:] for given, place in two_places(model))
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
    disable(model)
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"fewer than the model's 3 and at least 1, found {count}"):
            enable(model, "mmca", early=EarlyLayers("image", count))


def use_pair(model, pair, monkeypatch, implementation="sdpa"):
    """Enable a point of the family that has no name."""
    from visualchat.attention import register

    name = "-".join(pair)
    monkeypatch.setitem(register.KINDS, name, register.attention_kind(pair))
    register.register()
    enable(model, name, implementation)


CONTEXTS = pytest.mark.parametrize("pair", [(c, s) for c in ("image", "label", "unit") for s in ("joint", "split")])


def of_unit(pair, found, place):
    """The states that depend on the unit alone: under context `image` only the image's, else the label's too."""
    return found[:, place][:, 2:] if pair[0] == "image" else found[:, place]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@CONTEXTS
def test_a_units_states_are_the_same_anywhere_to_rounding(pair, implementation, monkeypatch):
    """Rotary embedding is relative, in exact arithmetic: float32 rounds other angles at another place."""
    model = language_model("llama")
    use_pair(model, pair, monkeypatch, implementation)
    here, there = (of_unit(pair, states(model, inputs), place) for inputs, place in two_places(model))
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@CONTEXTS
def test_a_units_states_are_the_same_bits_when_its_positions_count_from_its_own_start(
    pair, implementation, monkeypatch
):
    model = language_model("llama")
    use_pair(model, pair, monkeypatch, implementation)
    found = []
    for inputs, place in two_places(model):
        positions = torch.arange(16)[None].clone()
        positions[0, place] = torch.arange(SPAN)
        found.append(of_unit(pair, states(model, {**inputs, "position_ids": positions, "use_cache": False}), place))
    assert torch.equal(*found)


def rotated(key, positions, model):
    """`key` (B, H, n, D), not yet rotated, as it stands at `positions` (n)."""
    cos, sin = model.model.rotary_emb(key, positions[None])
    half = key.shape[-1] // 2
    turned = torch.cat([-key[..., half:], key[..., :half]], -1)
    return key * cos[:, None] + turned * sin[:, None]


@pytest.mark.parametrize(
    "pair", [("self", "joint"), ("self", "split"), *((c, s) for c in ("label", "unit") for s in ("joint", "split"))]
)
def test_a_unit_computed_alone_and_rotated_to_its_place_serves_as_cache(pair, monkeypatch):
    """Exact reuse: text before, the unit's states from a run of the unit alone, text after; equal to the whole run."""
    model = language_model("llama")
    use_pair(model, pair, monkeypatch)
    (inputs, place), _ = two_places(model)
    length = place.stop + 3
    inputs = {name: t[:, :length] for name, t in inputs.items()}
    whole = logits(model, inputs)
    alone = {name: t[:, place] for name, t in inputs.items()}
    if pair[0] == "self":  # the label is ordinary text there: only the image is computed alone
        place = slice(place.start + 2, place.stop)
        alone = {name: t[:, place] for name, t in inputs.items()}
    kept = states(model, alone)
    cache = DynamicCache(config=model.config)
    begin = place.start
    model(**{name: t[:, :begin] for name, t in inputs.items()}, past_key_values=cache)
    split = kept.view(3, 2, 1, -1, 2, 8).transpose(3, 4)  # layer, key or value, B, H, n, D
    for layer, (key, value) in enumerate(split):
        cache.update(rotated(key, torch.arange(begin, place.stop), model), value, layer)
    ids = {name: inputs[name] for name in ("image_ids", "unit_ids")}
    after = model(
        inputs_embeds=inputs["inputs_embeds"][:, place.stop :],
        key_modality=inputs["mm_token_type_ids"],
        past_key_values=cache,
        **ids,
    ).logits
    torch.testing.assert_close(after, whole[:, place.stop :], atol=1e-3, rtol=1e-4)  # float32 through three layers

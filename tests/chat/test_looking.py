"""Where an answer looked: the weights are those that made it, image by image and token by token."""

import pytest
import torch
from PIL import Image

from visualchat.attention.watch import Watch
from visualchat.chat.looking import look, why_not_shown
from visualchat.dialogue import Dialogue, Turn

KINDS = ("mmca", "mmca_joint", "unit", "unit_split", "causal", "image", "mmca_reference")
SPLIT = ("mmca", "unit_split", "mmca_reference")


def image(seed):
    return Image.frombytes("RGB", (16, 16), bytes((seed * 37 + k * 7) % 256 for k in range(16 * 16 * 3)))


@pytest.fixture
def dialogue():
    rounds = (
        Turn.ask("What is it?", [image(1), image(2)], answer="A dog."),
        Turn.ask("And here?", [image(3)], answer="Two cats, é."),
    )
    return Dialogue(rounds)


def recorded(model):
    """Each layer's values (H, K, D) and what its attention gave (K, H, D), as its own modules saw them."""
    found = []
    heads = model.language_model.config.num_attention_heads
    for layer in model.language_model.base_model.layers:
        seen = {}
        found.append(seen)

        def values(module, args, out, seen=seen):
            seen["values"] = out[0].view(len(out[0]), -1, 32 // heads).transpose(0, 1).repeat_interleave(2, 0)

        def given(module, args, seen=seen):
            seen["out"] = args[0][0].view(len(args[0][0]), heads, -1)

        layer.self_attn.v_proj.register_forward_hook(values)
        layer.self_attn.o_proj.register_forward_pre_hook(given)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_that_made_the_answer(make_model, processor, dialogue, kind):
    model = make_model(attention_kind=kind)
    layers = recorded(model)
    grid, text = {}, {}
    for layer in range(2):
        for head in range(4):
            looked = look(model, processor, dialogue, layer=layer, head=head)
            images = looked.images.flatten(1)
            assert looked.softmaxes == (2 if kind in SPLIT else 1)
            ones = torch.ones(len(images), dtype=torch.double)
            sums = (images.sum(1), looked.text.sum(1))
            for side in sums if kind in SPLIT else [sums[0] + sums[1]]:
                torch.testing.assert_close(side, ones, atol=1e-6, rtol=0)
            encoding = processor.encode(dialogue)
            count = len(encoding) - 2  # its last query chose the last word; the end token's is left out
            is_image = torch.tensor(encoding.mm_token_type_ids[:count]).bool()
            weights = torch.zeros(len(images), count, dtype=torch.double)
            weights[:, is_image], weights[:, ~is_image] = images, looked.text
            made = weights @ layers[layer]["values"][head].double()
            expected = layers[layer]["out"][-len(images) :, head].double()
            torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)  # of float32 weights
            grid[layer, head], text[layer, head] = looked.images, looked.text
    mean = look(model, processor, dialogue)
    torch.testing.assert_close(mean.images, sum(grid.values()) / 8)
    torch.testing.assert_close(mean.text, sum(text.values()) / 8)
    of_layer = look(model, processor, dialogue, layer=1)
    torch.testing.assert_close(of_layer.images, sum(grid[1, head] for head in range(4)) / 4)


def test_tokens_words_and_images_are_named_in_order(make_model, processor, dialogue):
    looked = look(make_model(), processor, dialogue)
    assert "".join(looked.tokens[:-3]) == "Two cats, "
    assert "".join(looked.words).startswith(processor.tokenizer.decode(processor.encode(dialogue).input_ids[:4]))
    assert looked.images.shape == (len(looked.tokens), 3, 4)
    assert looked.text.shape == (len(looked.tokens), len(looked.words))
    assert [(grid.rows, grid.columns, grid.first, grid.box) for grid in looked.grids] == [(2, 2, 0, (0, 0, 1, 1))] * 3
    alone = Dialogue((Turn.ask("Who?", answer="I."),))
    assert look(make_model(), processor, alone).images.shape == (2, 0, 4)


def test_a_watch_changes_no_answer(make_model, processor, dialogue):
    for kind in ("mmca", "causal"):
        model = make_model(attention_kind=kind)
        inputs = processor.batch([dialogue])
        del inputs["labels"]
        with torch.no_grad():
            plain = model(**inputs).logits
            watched = model(**inputs, watch=Watch(3, lambda layer, weights: None)).logits
        torch.testing.assert_close(watched, plain, atol=1e-5, rtol=1e-5)  # causal has a way of its own


def test_layers_of_two_kinds_are_looked_at_one_by_one(make_model, processor, dialogue):
    model = make_model(attention_kind="mmca", early_attention_kind="causal", early_attention_share=0.5)
    assert [look(model, processor, dialogue, layer=layer).softmaxes for layer in (0, 1)] == [1, 2]
    with pytest.raises(ValueError, match="name one layer"):
        look(model, processor, dialogue)


def test_what_cannot_be_shown_is_refused_with_its_reason(make_model, processor, dialogue):
    with pytest.raises(ValueError, match="layer 2: this model has 2"):
        look(make_model(), processor, dialogue, layer=2)
    with pytest.raises(ValueError, match="head -1: this model has 4"):
        look(make_model(), processor, dialogue, head=-1)
    with pytest.raises(ValueError, match="no answer"):
        look(make_model(), processor, Dialogue((*dialogue.turns, Turn.ask("And?"))))
    for model, words in (
        (make_model(attention_kind="cross", cross_attention_every=1), "layers of their own"),
        (make_model(projector_type="perceiver"), "each read the whole image"),
    ):
        assert words in why_not_shown(model)
        with pytest.raises(ValueError, match=words):
            look(model, processor, dialogue)
    eager = make_model(attention_kind="causal", attention_implementation="eager")
    with pytest.raises(ValueError, match="attention_implementation 'auto'"):
        look(eager, processor, dialogue)
    long = Dialogue((Turn.ask("a " * 2000, answer="b"),))
    with pytest.raises(ValueError, match="more than the 2048"):
        look(make_model(), processor, long)

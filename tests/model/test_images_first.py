"""The cache that keeps images first: what it holds, what the model computes on it, and what happens when it is cut."""

import copy

import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from visualchat.attention import Modality, attention_kind
from visualchat.attention.layout import Layout
from visualchat.attention.sdpa_plan import make_sides
from visualchat.dialogue import Dialogue, Turn
from visualchat.model.growing_cache import GrowingCache
from visualchat.model.images_first import ImagesFirstCache, new_cache

kinds = pytest.mark.parametrize("kind", ["mmca", "unit_split"])


def prompts(processor, rows):
    """Rows of two images, one between texts, and none, padded on the left."""
    red, blue = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    given = [
        Dialogue((Turn.ask("Which of them?", [red, blue]),), "two"),
        Dialogue((Turn.ask("Hello, this is longer.", [], "Hi."), Turn(("Is", blue, "it?"), None)), "later"),
        Dialogue((Turn.ask("Text?", []),), "none"),
    ]
    return processor.prompt([given[row] for row in rows])


def entries(cache):
    return torch.stack([t for layer in cache.layers for t in (layer.keys, layer.values)])  # (2 · layers, B, H, K, D)


@torch.no_grad()
def run(model, inputs, cache, steps=3, chunk=None):
    """Logits of the prompt's last token and of further text, one at a time, on a cache; the prompt may be cut in two.

    Only a prompt of one row can be, between its images.
    """
    found, images = [], inputs.get("pixel_values")
    length = inputs["input_ids"].shape[1]
    cuts = [0, *([chunk] if chunk else []), *range(length, length + steps)]
    texts = torch.full((len(inputs["input_ids"]), steps), 5)
    ids = torch.cat([inputs["input_ids"], texts], 1)
    types = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, steps))
    units = torch.nn.functional.pad(inputs["unit_ids"], (0, steps), value=-1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, steps), value=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for start, stop in zip(cuts, [*cuts[1:], length + steps], strict=True):
        count = int((types[:, start:stop] == Modality.IMAGE).sum()) // model.config.image_seq_length
        shown, images = (None, images) if images is None else (images[:count], images[count:])
        out = model(
            input_ids=ids[:, start:stop],
            mm_token_type_ids=types[:, start:stop],
            key_modality=types[:, :stop],
            unit_ids=units[:, :stop],
            attention_mask=mask[:, :stop],
            position_ids=positions[:, start:stop],
            past_key_values=cache,
            pixel_values=shown if count else None,
        )
        found.append(out.logits[:, -1])
    return torch.stack(found[-steps - 1 :])


@kinds
@pytest.mark.parametrize("rows", [[0], [0, 1, 2]])
def test_it_holds_images_first_and_gives_the_logits_of_a_plain_cache(make_model, processor, kind, rows):
    model, inputs = make_model(attention_kind=kind), prompts(processor, rows)
    plain, cache = DynamicCache(config=model.config.text_config), new_cache(model.config)
    assert type(cache) is ImagesFirstCache
    # float32, sums in another order
    torch.testing.assert_close(run(model, inputs, cache), run(model, inputs, plain), atol=1e-4, rtol=1e-4)
    types = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 3))
    image = cache.in_order(types) == Modality.IMAGE
    assert torch.equal(image, torch.arange(image.shape[1]) < image.sum(1, keepdim=True))
    for row in range(len(rows)):
        order = cache.order[row]
        moved = entries(plain)[:, row].index_select(2, torch.cat([order, torch.arange(len(order), types.shape[1])]))
        torch.testing.assert_close(entries(cache)[:, row], moved, atol=1e-4, rtol=1e-4)


@kinds
def test_one_row_decodes_by_two_stretches_without_a_mask(make_model, processor, kind):
    model, inputs = make_model(attention_kind=kind), prompts(processor, [0])
    cache = new_cache(model.config)
    run(model, inputs, cache, steps=1)
    types = cache.in_order(torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 1)))
    layout = Layout(1, types, unit_ids=torch.full_like(types, -1))
    text, images = make_sides(attention_kind(kind), layout, torch.float32).apart
    count = int(inputs["mm_token_type_ids"].sum())
    assert (images.first, images.last, images.mask) == (0, count, None)
    assert (text.first, text.last, text.mask) == (count, types.shape[1], None)


@kinds
def test_a_prompt_in_chunks_and_a_cropped_cache_change_nothing(make_model, processor, kind):
    model, inputs = make_model(attention_kind=kind), prompts(processor, [0])
    expected = run(model, inputs, DynamicCache(config=model.config.text_config))
    first = int((inputs["mm_token_type_ids"][0] == Modality.IMAGE).nonzero()[0])
    size = processor.image_seq_length
    later = (inputs["mm_token_type_ids"][0, first + size :] == Modality.IMAGE).nonzero()[0] + first + size
    plain, cache = DynamicCache(config=model.config.text_config), new_cache(model.config)
    run(model, inputs, plain)
    found = run(model, inputs, cache, chunk=int(later) - 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    length = cache.get_seq_length()
    for left in (length - 1, int(later) + 1, 2):  # text at the end; inside the second image; before the first
        cut, cut_plain = copy.deepcopy(cache), copy.deepcopy(plain)
        cut.crop(left - length)
        cut_plain.crop(left - length)
        order = cut._order(torch.empty(1, left))[0]
        torch.testing.assert_close(entries(cut), entries(cut_plain).index_select(3, order), atol=1e-4, rtol=1e-4)
    cache.crop(-length)
    torch.testing.assert_close(run(model, inputs, cache), expected, atol=1e-4, rtol=1e-4)


def test_beams_take_their_rows_order_along(make_model, processor):
    model, inputs = make_model(attention_kind="mmca"), prompts(processor, [0, 1])
    cache = new_cache(model.config)
    run(model, inputs, cache, steps=0)
    before, order = entries(cache), cache.order
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([1, 0, 3, 3]))
    cache.batch_select_indices(torch.tensor([0, 3]))
    assert torch.equal(entries(cache), before)
    assert torch.equal(cache.order, order)
    cache.reset()
    assert cache.order is None


@pytest.mark.parametrize("kind", ["causal", "mmca_joint", "unit", "cross"])
def test_one_softmax_needs_no_order(make_model, kind):
    more = {"cross_attention_every": 1} if kind == "cross" else {}
    assert type(new_cache(make_model(attention_kind=kind, **more).config)) is GrowingCache

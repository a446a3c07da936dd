"""Queries on top of a cache: the oracle's results in every order of the cache, and no mask where none is needed."""

import pytest
import torch
from layouts import IMAGE, PAIRS, TEXT, attend, random_qkv, random_tokens
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from twins import language_model

from visualchat.attention import attention_kind, enable, multimodal_attention, sdpa
from visualchat.attention.cached import make_cached_plan
from visualchat.attention.layout import Layout
from visualchat.attention.sdpa_plan import Mask

OWN = [pair for pair in PAIRS if pair[0] in ("self", "image", "label", "unit")] + [("all", "joint")]
own = pytest.mark.parametrize("kind", OWN, ids="-".join)
heads = pytest.mark.parametrize("kv_heads", [4, 2])


def layout_of(tokens, queries):
    return Layout(queries, tokens.modality, tokens.padding, tokens.image_ids, tokens.unit_ids, tokens.segment_ids)


@heads
@own
def test_a_prompt_in_chunks_equals_the_oracle(kind, kv_heads):
    """Cut anywhere, on a cache in the order of the conversation; where it has no stretches, under masks."""
    planned = 0
    for seed, shape in enumerate(("mixed", "text only", "image first", "back to back", "images only", "left", "right")):
        tokens = random_tokens(shape, seed)
        for queries in range(2, tokens.length):
            qkv = random_qkv(tokens, queries, kv_heads=kv_heads)
            # float64 on both sides: only the order of the sums differs
            expected, found = (attend(qkv, t, kind, way) for t, way in ((tokens, "eager"), (tokens.fresh(), "sdpa")))
            torch.testing.assert_close(found, expected, msg=lambda text, at=(shape, queries): f"{at}: {text}")
            planned += make_cached_plan(attention_kind(kind), layout_of(tokens, queries), torch.float64) is not None
    assert planned > 9


def images_first(tokens, kind, least):
    """An order of each row: images, old text, new text that stands around them; and how many tokens are new.

    Labels that belong to a unit are old, as their images are.
    """
    text = (tokens.modality == TEXT) & tokens.real()
    if kind[0] in ("label", "unit"):
        text &= tokens.unit_ids < 0
    count = int(text.sum(1).min()) - least
    orders = []
    for row in range(len(text)):
        new = text[row].nonzero()[:, 0][-count:]
        old = torch.ones_like(text[row])
        old[new] = False
        image = tokens.modality[row] == IMAGE
        orders.append(torch.cat([(old & image).nonzero()[:, 0], (old & ~image).nonzero()[:, 0], new]))
    return torch.stack(orders), count


def ordered(tokens, order, count):
    """The keywords of `multimodal_attention` for tokens in another order."""
    given = {
        name: None if ids is None else ids.gather(1, order)
        for name, ids in tokens.keywords(tokens.length).items()
        if name != "query_modality"
    }
    return given | {"query_modality": given["key_modality"][:, -count:], "key_order": order}


@heads
@own
@pytest.mark.parametrize("batch", [1, 3])
def test_text_around_images_put_in_before_equals_the_oracle(kind, kv_heads, batch):
    """Rows of unequal image counts too, and padding on the left."""
    for seed, shape in enumerate(("mixed", "image first", "back to back", "left", "left", "mixed")):
        tokens = random_tokens(shape, seed, batch=batch)
        for least in (0, 1, 2):
            order, count = images_first(tokens, kind, least)
            if count < 2:
                continue
            query, key, value = random_qkv(tokens, kv_heads=kv_heads, seed=seed)
            whole = attend((query, key, value), tokens, kind, "eager")
            where = order[:, None, :, None]
            moved = (t.take_along_dim(where, 2) for t in (query, key, value))
            query, key, value = (t.contiguous() for t in moved)
            given = ordered(tokens, order, count)
            found = multimodal_attention(query[:, :, -count:], key, value, kind=kind, implementation="sdpa", **given)
            torch.testing.assert_close(found, whole.take_along_dim(where[:, :, -count:], 2))


@pytest.mark.parametrize(
    ("kind", "way"),
    [(kind, way) for kind in OWN for way in ("images first", "put in before")]
    + [(kind, "later round") for kind in OWN if kind[1] == "joint"],  # two softmaxes keep images first
)
def test_one_row_needs_no_mask(kind, way, monkeypatch):
    """Neither the masks of queries on top of a cache nor any other, nor a tensor with an entry for each pair."""
    tokens = random_tokens("mixed", 2, batch=1)
    queries = 3
    order, count = torch.arange(tokens.length)[None], queries
    if way == "put in before":
        order, count = images_first(tokens, kind, 0)
    elif way == "images first":
        image = tokens.modality[0, :-queries] == IMAGE
        assert not (tokens.modality[0, -queries:] == IMAGE).any()
        order = torch.cat([image.nonzero()[:, 0], (~image).nonzero()[:, 0], order[0, -queries:]])[None]
    given = ordered(tokens, order, count)
    if way != "put in before":
        given["key_order"] = None
    query, key, value = random_qkv(tokens, count)
    arguments = query, key, value, attention_kind(kind)
    expected = multimodal_attention(*arguments[:3], kind=kind, implementation="eager", **given)

    def refused(*args, **kwargs):
        raise AssertionError("a mask was made")

    monkeypatch.setattr(sdpa, "make_sides", refused)
    monkeypatch.setattr(Mask, "of", refused)
    found = multimodal_attention(*arguments[:3], kind=kind, implementation="sdpa", **given)
    torch.testing.assert_close(found, expected)


def test_a_chunk_that_begins_inside_a_unit_takes_masks():
    tokens = random_tokens("mixed", 0, batch=1)
    inside = int(
        (tokens.unit_ids[0, 1:] == tokens.unit_ids[0, :-1]).logical_and(tokens.unit_ids[0, 1:] >= 0).nonzero()[0]
    )
    layout = layout_of(tokens, tokens.length - inside - 1)
    assert make_cached_plan(attention_kind("unit"), layout, torch.float64) is None
    assert make_cached_plan(attention_kind("mmca_joint"), layout, torch.float64) is not None


def test_gradients_flow_through_queries_on_a_cache():
    tokens = random_tokens("mixed", 1)
    qkv = [tensor.requires_grad_() for tensor in random_qkv(tokens, 4)]
    found, expected = (
        torch.autograd.grad(attend(qkv, tokens, "unit", way).square().sum(), qkv) for way in ("sdpa", "eager")
    )
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_causal_attention_on_a_cache_makes_no_mask_where_nothing_is_padded(family, monkeypatch):
    """transformers' own makes one; with padding, and for what our parts cannot do, it still does."""
    model, plain = language_model(family), language_model(family)
    enable(model, "causal")
    ids = torch.randint(2, 48, (2, 9), generator=torch.Generator().manual_seed(0))
    whole = plain(ids).logits

    def in_chunks(mask=None):
        cache, rows = DynamicCache(config=model.config), []
        for start, stop in ((0, 4), (4, 7), (7, 9)):
            given = None if mask is None else mask[:, :stop]
            rows.append(model(ids[:, start:stop], attention_mask=given, past_key_values=cache).logits)
        return torch.cat(rows, 1)

    made = []
    own = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]

    def counted(**kwargs):
        found = own(**kwargs)
        made.append(found is not None)
        return found

    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS, "sdpa", counted)
    torch.testing.assert_close(in_chunks(), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(in_chunks(torch.ones_like(ids)), whole, atol=1e-5, rtol=1e-4)
    assert made == [False, False]  # the first chunks, which stand on no cache
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    expected = plain(ids, attention_mask=mask).logits
    made.clear()
    torch.testing.assert_close(in_chunks(mask)[:, 2:], expected[:, 2:], atol=1e-5, rtol=1e-4)
    assert made == [True, True, True]
    layer = model.model.layers[0].self_attn
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8, generator=generator) for heads in (4, 2, 2))
    on_cache = query[:, :, -3:], key, value, torch.ones(2, 5, dtype=torch.bool)
    attend = ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation]
    near, _ = attend(layer, *on_cache, sliding_window=50, scaling=1.0)  # a window longer than all
    torch.testing.assert_close(near, attend(layer, *on_cache, scaling=1.0)[0])
    assert made[3:] == [True]

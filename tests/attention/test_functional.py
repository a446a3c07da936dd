"""Every implementation equals the float64 oracle on random layouts; the oracle equals the definition."""

import pytest
import torch
from layouts import IMAGE, PAIRS, SHAPES, TEXT, attend, by_definition, noise, random_qkv, random_tokens, without_images
from torch.nn.functional import scaled_dot_product_attention

from visualchat.attention import attention_kind, multimodal_attention, parts, parts_plan, sdpa, sdpa_plan
from visualchat.attention.layout import Layout

IMPLEMENTATIONS = ("eager", "sdpa")
CASES = [
    ("sdpa", torch.float64, 1e-12),  # the same mathematics in another order of sums
    ("sdpa", torch.float32, 1e-5),  # 24 bits, sums of some 30 terms
    ("eager", torch.float32, 1e-5),
    ("sdpa", torch.bfloat16, 6e-2),  # 8 bits: 1/256 of values up to 4, rounded several times
]
pairs = pytest.mark.parametrize("kind", PAIRS, ids="-".join)
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@pytest.fixture(params=[0, 1 << 16], ids=["image side in pieces", "image side under a mask"])
def image_side(request, monkeypatch):
    """Both forms of the fast implementation's image side, whatever the lengths."""
    monkeypatch.setattr(sdpa_plan, "MASKED_SIDE", request.param)
    monkeypatch.setattr(parts_plan, "ALIKE", 2)  # so that the runs of these rows are not all alike


def gradients(qkv, out):
    """Of a fixed weighting of `out`, in float64; zero where a tensor has no influence at all."""
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    found = torch.autograd.grad((out.double() * weights).sum(), qkv, allow_unused=True)
    return [torch.zeros_like(t).double() if g is None else g.double() for t, g in zip(qkv, found, strict=True)]


@pairs
def test_the_oracle_equals_the_definition_written_out(kind):
    for shape in SHAPES:
        tokens = random_tokens(shape)
        qkv = random_qkv(tokens)
        # float64 on both sides: only the order of the sums differs
        torch.testing.assert_close(attend(qkv, tokens, kind, "eager"), by_definition(qkv, tokens, kind), msg=shape)


@pytest.mark.parametrize(("implementation", "dtype", "tolerance"), CASES)
@pairs
@pytest.mark.usefixtures("image_side")
def test_equals_the_float64_oracle_with_gradients(kind, implementation, dtype, tolerance):
    """Prefill, a chunk and a decode step; a gradient sums some 30 times more terms than an output: four tolerances."""
    for seed, shape in enumerate(SHAPES):
        tokens = random_tokens(shape, seed)
        for queries in (tokens.length, min(4, tokens.length), 1):
            base = random_qkv(tokens, queries)
            # The oracle gets the very numbers that the tested type can hold.
            tested = [t.to(dtype).requires_grad_() for t in base]
            oracle = [t.detach().double().requires_grad_() for t in tested]
            expected, found = (
                attend(oracle, tokens, kind, "eager"),
                attend(tested, tokens.fresh(), kind, implementation),
            )
            close = {"rtol": tolerance, "msg": lambda text, at=(shape, queries): f"{at}: {text}"}
            torch.testing.assert_close(found.double(), expected, atol=tolerance, **close)
            assert found.dtype == dtype
            for got, wanted in zip(gradients(tested, found), gradients(oracle, expected), strict=True):
                assert got.isfinite().all()
                torch.testing.assert_close(got, wanted, atol=4 * tolerance, **close)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
@implementations
@pairs
def test_grouped_heads_equal_repeated_ones(kind, implementation, heads, kv_heads):
    tokens = random_tokens("packed right", 3)
    query, key, value = random_qkv(tokens, heads=heads, kv_heads=kv_heads)
    repeated = [t.repeat_interleave(heads // kv_heads, 1) for t in (key, value)]
    expected = attend((query, *repeated), tokens, kind, "eager")
    torch.testing.assert_close(attend((query, key, value), tokens, kind, implementation), expected)


@implementations
@pairs
def test_text_only_equals_causal(kind, implementation):
    tokens = without_images(random_tokens("mixed"))
    qkv = [t.float() for t in random_qkv(tokens)]
    expected = scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True)
    # float32 in two orders of sums
    torch.testing.assert_close(attend(qkv, tokens, kind, implementation), expected, atol=1e-6, rtol=1e-5)


@implementations
def test_the_kind_causal_is_plain_causal_attention_over_images_too(implementation):
    tokens = random_tokens("mixed")
    qkv = [t.float() for t in random_qkv(tokens)]
    expected = scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(attend(qkv, tokens, "causal", implementation), expected, atol=1e-6, rtol=1e-5)


@implementations
@pytest.mark.usefixtures("image_side")
def test_log_sum_exp_merge_of_the_sides_equals_causal(implementation):
    """The two sides together are causal attention, each weighted by its share of the sum of exponentials."""
    tokens = random_tokens("image first", 1)
    query, key, value = random_qkv(tokens, heads=2)
    scores = query @ key.transpose(-1, -2) * 8**-0.5
    causal = torch.ones(tokens.length, tokens.length, dtype=torch.bool).tril()
    sides = []
    for side in (TEXT, IMAGE):
        # All text with the other side's keys padded away isolates one side.
        seen = tokens.modality == side
        text = without_images(tokens)
        keywords = {**text.keywords(tokens.length), "key_padding_mask": seen}
        out = multimodal_attention(query, key, value, kind="mmca", implementation="eager", **keywords)
        mass = scores.masked_fill(~(causal & seen[:, None, None, :]), float("-inf")).logsumexp(-1)
        sides.append((out, mass))
    total = torch.logsumexp(torch.stack([mass for _, mass in sides]), 0)
    merged = sum(out * (mass - total).exp()[..., None] for out, mass in sides)
    torch.testing.assert_close(merged, scaled_dot_product_attention(query, key, value, is_causal=True))
    of_text = (tokens.modality == TEXT)[:, None, :, None]
    found = attend((query, key, value), tokens, "mmca", implementation)
    torch.testing.assert_close(found * of_text, sum(out for out, _ in sides) * of_text)


@pytest.mark.parametrize("shape", ["mixed", "image first", "back to back", "text only", "packed", "left", "right"])
@implementations
@pairs
@pytest.mark.usefixtures("image_side")
def test_a_later_token_changes_no_bit_of_an_earlier_output(kind, implementation, shape):
    """Under context `image` an image token sees its own image to the end, so only later images' tokens are changed."""
    tokens = random_tokens(shape, 5)
    qkv = [t.float() for t in random_qkv(tokens)]
    before = attend(qkv, tokens, kind, implementation)
    for cut in range(1, tokens.length, 4):
        open_image = torch.zeros_like(tokens.real())
        if kind[0] == "image":
            open_image = (tokens.image_ids == tokens.image_ids[:, cut - 1 : cut]) & (tokens.image_ids >= 0)
        later = (torch.arange(tokens.length) >= cut) & ~open_image
        changed = [torch.where(later[:, None, :, None], noise(t), t) for t in qkv]
        after = attend(changed, tokens, kind, implementation)
        assert torch.equal(before[:, :, :cut], after[:, :, :cut])


@implementations
@pairs
@pytest.mark.usefixtures("image_side")
def test_packed_dialogues_share_no_bit(kind, implementation):
    tokens = random_tokens("packed right", 2)
    qkv = [t.float() for t in random_qkv(tokens)]
    before = attend(qkv, tokens, kind, implementation)
    for segment in range(3):
        own = (tokens.segment_ids == segment)[:, None, :, None]
        changed = [torch.where(own, t, noise(t)) for t in qkv]
        after = attend(changed, tokens, kind, implementation)
        assert torch.equal(before * own, after * own)


@implementations
@pytest.mark.parametrize("softmax", ["joint", "split"])
@pytest.mark.parametrize("shape", SHAPES)
def test_under_context_self_an_image_token_gives_its_own_value(shape, softmax, implementation):
    tokens = random_tokens(shape)
    query, key, value = random_qkv(tokens)
    found = attend((query, key, value), tokens, ("self", softmax), implementation)
    image = ((tokens.modality == IMAGE) & tokens.real())[:, None, :, None].expand_as(found)
    assert torch.equal(found[image], value.repeat_interleave(2, dim=1)[image])


@implementations
@pytest.mark.usefixtures("image_side")
def test_an_empty_side_adds_exactly_zero(implementation):
    """Text before the first image has causal attention's bits: the image side added 0, not something small."""
    tokens = random_tokens("mixed", 7)
    first = int((tokens.modality == IMAGE).any(0).nonzero()[0])
    assert first > 0
    qkv = [t.float() for t in random_qkv(tokens)]
    expected = attend(qkv, without_images(tokens), "mmca", implementation)[:, :, :first]
    if implementation == "eager":
        assert torch.equal(attend(qkv, tokens, "mmca", implementation)[:, :, :first], expected)
    # The fused kernel may cut rows of another length into other blocks: float32 in two orders of sums.
    torch.testing.assert_close(attend(qkv, tokens, "mmca", implementation)[:, :, :first], expected, atol=1e-6, rtol=0)


def test_a_plan_is_not_reused_after_its_layout_was_written_to():
    tokens = random_tokens("mixed")
    qkv = random_qkv(tokens)
    before = attend(qkv, tokens, "mmca", "sdpa")
    tokens.modality.copy_(1 - tokens.modality)
    after = attend(qkv, tokens, "mmca", "sdpa")
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, attend(qkv, tokens, "mmca", "eager"))


@pytest.mark.parametrize("dtype", [torch.bool, torch.long])
def test_layers_share_one_plan(dtype, monkeypatch):
    """Also if the padding mask is of numbers, and first layers attend by another kind."""
    made = []
    make_plan = sdpa.make_plan
    monkeypatch.setattr(sdpa, "make_plan", lambda kind, *more: made.append(kind) or make_plan(kind, *more))
    tokens = random_tokens("right")
    keywords = {**tokens.keywords(tokens.length), "key_padding_mask": tokens.real().to(dtype)}
    for kind in ("image", "image", "mmca", "mmca", "image"):
        multimodal_attention(*random_qkv(tokens), kind=kind, **keywords)
    assert made == [attention_kind("image"), attention_kind("mmca")]


def test_runs_under_inference_mode():
    tokens = random_tokens("packed right")
    qkv = random_qkv(tokens)
    with torch.inference_mode():
        found = attend(qkv, tokens.fresh(), "mmca", "sdpa")
    torch.testing.assert_close(found, attend(qkv, tokens, "mmca", "eager"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "mmcaa"}, "unknown attention kind 'mmcaa', expected one of causal, mmca"),
        ({"kind": ("self", "both")}, "unknown softmax 'both', expected one of joint, split"),
        ({"kind": ("other", "joint")}, "unknown image_context 'other', expected one of self, image, label"),
        ({"implementation": "fast"}, "unknown implementation 'fast', expected auto or one of eager, sdpa"),
        ({"kind": ("image", "joint")}, r"image context 'image' needs image_ids \(B, K\) to tell images apart"),
        ({"kind": "unit"}, r"image context 'unit' needs unit_ids \(B, K\), found None"),
        ({"key_modality": torch.zeros(2, 18, dtype=torch.long)}, r"key_modality must have shape \(2, 19\)"),
        ({"query_modality": torch.zeros(2, 3, dtype=torch.long)}, r"query_modality must have shape \(2, 19\)"),
        ({"key_padding_mask": torch.ones(1, 19)}, r"key_padding_mask must have shape \(2, 19\), found \(1, 19\)"),
        ({"value": torch.zeros(2, 2, 18, 8)}, "key and value must both be"),
        ({"value": torch.zeros(2, 2, 19, 8).double()}, "of one dtype: found value"),
        ({"query": torch.zeros(2, 3, 19, 8)}, "query heads must be a multiple of key heads"),
        ({"query": torch.zeros(2, 4, 20, 8)}, "Q at most K"),
        ({"query": torch.zeros(4, 20, 8)}, "must be 4-D"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    modality = torch.zeros(2, 19, dtype=torch.long)
    arguments = {"query": torch.zeros(2, 4, 19, 8), "key": torch.zeros(2, 2, 19, 8), "value": torch.zeros(2, 2, 19, 8)}
    arguments |= {"kind": "mmca", "query_modality": modality, "key_modality": modality, **changes}
    with pytest.raises(ValueError, match=message):
        multimodal_attention(**arguments)


@pytest.mark.parametrize("kind", ["mmca", "mmca_joint", "unit"])
def test_without_torchs_operators_it_computes_the_same_and_says_so(kind, monkeypatch):
    monkeypatch.setattr(sdpa_plan, "MASKED_SIDE", 0)
    monkeypatch.setattr(parts, "_FORWARD", "_no_such_operator")
    parts._operators.cache_clear()
    tokens = random_tokens("packed right", 4)
    tested = [t.requires_grad_() for t in random_qkv(tokens)]
    oracle = [t.detach().requires_grad_() for t in tested]
    with pytest.warns(
        UserWarning, match="has no aten::_no_such_operator: over images one softmax costs as much as causal"
    ):
        found = attend(tested, tokens.fresh(), kind, "sdpa")
    parts._operators.cache_clear()
    expected = attend(oracle, tokens, kind, "eager")
    torch.testing.assert_close(found, expected)
    for got, wanted in zip(gradients(tested, found), gradients(oracle, expected), strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_joint_kind_computes_no_pair_of_an_image_query():
    """What is left of one softmax where text and images are apart: text with text, text with images; nothing else."""
    modality = torch.tensor([[0] * 40 + [1] * 400] * 4).flatten()[None]
    layout = Layout(modality.shape[1], modality)
    plan = sdpa_plan.make_plan(attention_kind("mmca_joint"), layout, torch.float32, mergeable=True)
    (part,) = plan.parts
    assert plan.text.length == 160
    (row,), (back,) = part.by_query, part.by_key
    assert [(p.start, p.stop, p.last) for p in row] == [(40 * n, 40 * n + 40, 440 * n) for n in range(4)]
    assert [(p.start, p.stop, p.first, p.last) for p in back] == [
        (40 * n, 160, 440 * n - 440, 440 * n) for n in (1, 2, 3)
    ]
    assert [some.shape for some in part.inside] == [(4, 40)]
    assert sdpa_plan.make_plan(attention_kind("mmca_joint"), layout, torch.float32).parts is None


@pytest.mark.parametrize("kind", ["unit", "unit_split", "label"])
def test_a_label_whose_image_is_not_there_sees_itself_alone(kind):
    """Every token is text, and yet a group attends among itself."""
    tokens = without_images(random_tokens("mixed", 2))
    tokens.unit_ids[:, 3:6] = 0
    tested = [t.requires_grad_() for t in random_qkv(tokens)]
    oracle = [t.detach().requires_grad_() for t in tested]
    found, expected = attend(tested, tokens, kind, "sdpa"), attend(oracle, tokens, kind, "eager")
    torch.testing.assert_close(found, expected)
    for got, wanted in zip(gradients(tested, found), gradients(oracle, expected), strict=True):
        torch.testing.assert_close(got, wanted)

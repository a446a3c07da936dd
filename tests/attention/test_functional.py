"""Every implementation equals the float64 oracle; the oracle itself equals independent definitions."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from visualchat.attention import multimodal_attention

TEXT, IMAGE = 0, 1


def layout(name: str, batch: int = 2, length: int = 19) -> tuple[torch.Tensor, torch.Tensor]:
    """Modality (B, K) and padding mask (B, K) of a named layout; rows differ."""
    generator = torch.Generator().manual_seed(len(name))
    modality = torch.zeros(batch, length, dtype=torch.long)
    padding = torch.ones(batch, length, dtype=torch.bool)
    if name == "random":
        modality = torch.randint(0, 2, (batch, length), generator=generator)
    elif name == "images first":
        modality[0, :5] = IMAGE
        modality[1, :9] = IMAGE
    elif name == "back to back":
        modality[0, 3:11] = IMAGE
    elif name == "images only":
        modality[:] = IMAGE
    elif name == "padded right":
        modality[:, 4:8] = IMAGE
        padding[0, 12:] = False
    elif name == "padded left":
        modality[:, 8:12] = IMAGE
        padding[1, :6] = False
    return modality, padding


LAYOUTS = ("text only", "random", "images first", "back to back", "images only", "padded right", "padded left")


def tensors(length: int, queries: int, *, heads: int = 4, kv_heads: int = 2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(length)
    query = torch.randn(2, heads, queries, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(2, kv_heads, length, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    return [t.to(dtype).requires_grad_() for t in (query, key, value)]


def run(qkv, kind, modality, padding, implementation):
    queries = qkv[0].shape[2]
    return multimodal_attention(
        *qkv,
        kind=kind,
        query_modality=modality[:, modality.shape[1] - queries :],
        key_modality=modality,
        key_padding_mask=padding,
        implementation=implementation,
    )


@pytest.mark.parametrize("queries", [19, 6, 1], ids=["prefill", "chunk", "decode"])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(
    ("implementation", "dtype", "tolerance"),
    [
        ("sdpa", torch.float64, 1e-12),  # the same mathematics in another order of sums
        ("sdpa", torch.float32, 1e-5),  # 24 bits, sums of 19 terms
        ("eager", torch.float32, 1e-5),
        ("sdpa", torch.bfloat16, 6e-2),  # 8 bits: 1/256 of values up to 4, rounded several times
    ],
)
def test_equals_the_float64_oracle_with_gradients(name, queries, implementation, dtype, tolerance):
    modality, padding = layout(name)
    real = padding[:, 19 - queries :, None][:, None]
    oracle, tested = tensors(19, queries, dtype=torch.float64), tensors(19, queries, dtype=dtype)
    expected = run(oracle, "mmca", modality, padding, "eager") * real
    found = run(tested, "mmca", modality, padding, implementation) * real
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)

    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    (expected * weights).sum().backward()
    (found.double() * weights).sum().backward()
    for wanted, got in zip(oracle, tested, strict=True):
        # Where no query attends (a decode step of an image token) a query has no influence: None, which means zero.
        gradient = torch.zeros_like(got) if got.grad is None else got.grad
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient.double(), wanted.grad, atol=4 * tolerance, rtol=4 * tolerance)


def test_oracle_equals_the_formula_written_out():
    """softmax(QK'·M1)V + softmax(QK'·M2)V, token by token, for text; its own value for an image token."""
    modality, padding = layout("random")
    query, key, value = tensors(19, 19, heads=2, dtype=torch.float64)
    found = run((query, key, value), "mmca", modality, padding, "eager")
    for b in range(2):
        for q in range(19):
            if modality[b, q] == IMAGE:
                torch.testing.assert_close(found[b, :, q], value[b, :, q])
                continue
            expected = torch.zeros(2, 8, dtype=torch.float64)
            for side in (TEXT, IMAGE):
                seen = [k for k in range(q + 1) if modality[b, k] == side]
                if seen:
                    scores = (query[b, :, q, None] * key[b, :, seen]).sum(-1) * 8**-0.5
                    expected = expected + (scores.softmax(-1)[..., None] * value[b, :, seen]).sum(1)
            torch.testing.assert_close(found[b, :, q], expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_text_only_equals_causal(implementation):
    modality, padding = layout("text only")
    qkv = tensors(19, 19)
    expected = scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(run(qkv, "mmca", modality, padding, implementation), expected, atol=1e-6, rtol=1e-5)


def test_eager_causal_equals_torch():
    modality, padding = layout("random")
    qkv = tensors(19, 19)
    expected = scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(run(qkv, "causal", modality, padding, "eager"), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_log_sum_exp_merge_of_the_sides_equals_causal(implementation):
    """The two sides together are causal attention, each weighted by its share of the sum of exponentials."""
    modality, padding = layout("random")
    query, key, value = (t.detach() for t in tensors(19, 19, heads=2, dtype=torch.float64))
    scores = query @ key.transpose(-1, -2) * 8**-0.5
    causal = torch.ones(19, 19, dtype=torch.bool).tril()
    sides = []
    for side in (TEXT, IMAGE):
        # All-text modality with the other side's keys padded away isolates one side of the implementation.
        seen = padding & (modality == side)
        out = run((query, key, value), "mmca", torch.zeros_like(modality), seen, "eager")
        mass = scores.masked_fill(~(causal & seen[:, None, None, :]), float("-inf")).logsumexp(-1)
        sides.append((out, mass))
    total = torch.logsumexp(torch.stack([mass for _, mass in sides]), 0)
    merged = sum(out * (mass - total).exp()[..., None] for out, mass in sides)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(merged, expected)
    added = sum(out for out, _ in sides)
    text = (modality == TEXT)[:, None, :, None]
    found = run((query, key, value), "mmca", modality, padding, implementation)
    torch.testing.assert_close(found * text, added * text)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["random", "images first", "back to back", "text only"])
def test_a_later_token_changes_no_bit_of_an_earlier_output(name, implementation):
    modality, padding = layout(name)
    query, key, value = (t.detach() for t in tensors(19, 19))
    before = run((query, key, value), "mmca", modality, padding, implementation)
    for cut in (1, 7, 18):
        changed = [t.clone() for t in (query, key, value)]
        for tensor in changed:
            tensor[:, :, cut:] = torch.randn_like(tensor[:, :, cut:]) * 3
        after = run(changed, "mmca", modality, padding, implementation)
        assert torch.equal(before[:, :, :cut], after[:, :, :cut])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_an_image_token_gives_its_own_value(implementation):
    modality, padding = layout("random")
    query, key, value = tensors(19, 19)
    found = run((query, key, value), "mmca", modality, padding, implementation)
    own = value.repeat_interleave(2, dim=1)
    image = (modality == IMAGE)[:, None, :, None].expand_as(found)
    assert torch.equal(found[image], own[image])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_an_empty_image_side_adds_exactly_zero_before_the_first_image(implementation):
    modality, padding = layout("back to back")
    qkv = tensors(19, 19)
    found = run(qkv, "mmca", modality, padding, implementation)
    expected = scaled_dot_product_attention(*(t[:, :, :3] for t in qkv), is_causal=True, enable_gqa=True)
    torch.testing.assert_close(found[:, :, :3], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "mmcaa"}, "unknown attention kind 'mmcaa', expected one of causal, mmca"),
        ({"kind": ("self", "both")}, "unknown softmax 'both', expected one of joint, split"),
        ({"implementation": "fast"}, "unknown implementation 'fast', expected auto or one of eager, sdpa"),
        ({"kind": ("image", "joint")}, r"image context 'image' needs image_ids \(B, K\) to tell images apart"),
        ({"kind": "unit"}, r"image context 'unit' needs unit_ids \(B, K\), found None"),
        ({"key_modality": torch.zeros(2, 18, dtype=torch.long)}, r"key_modality must have shape \(2, 19\)"),
        ({"query_modality": torch.zeros(2, 3, dtype=torch.long)}, r"query_modality must have shape \(2, 19\)"),
        ({"key_padding_mask": torch.ones(1, 19)}, r"key_padding_mask must have shape \(2, 19\), found \(1, 19\)"),
        ({"value": torch.zeros(2, 2, 18, 8)}, "key and value must both be"),
        ({"query": torch.zeros(2, 3, 19, 8)}, "query heads must be a multiple of key heads"),
        ({"query": torch.zeros(2, 4, 20, 8)}, "Q at most K"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    query, key, value = tensors(19, 19)
    modality, padding = layout("random")
    arguments = {"query": query, "key": key, "value": value, "kind": "mmca", "key_padding_mask": padding}
    arguments |= {"query_modality": modality, "key_modality": modality, **changes}
    with pytest.raises(ValueError, match=message):
        multimodal_attention(**arguments)

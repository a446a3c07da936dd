"""FlexAttention: the forward pass on CPU against the oracle, the block map against the mask, training on a GPU."""

import pytest
import torch
from layouts import PAIRS, SHAPES, attend, random_qkv, random_tokens

from visualchat.attention import AttentionKind, Modality, flex
from visualchat.attention.layout import Layout, visible

pairs = pytest.mark.parametrize("kind", PAIRS, ids="-".join)


def layout_of(tokens, queries):
    return Layout(queries, tokens.modality, tokens.padding, tokens.image_ids, tokens.unit_ids, tokens.segment_ids)


def sides_of(kind):
    return (None,) if kind.softmax == "joint" else (Modality.TEXT, Modality.IMAGE)


def seen_by(kind, layout, side):
    """The mask (B, Q, K) of one softmax; under context `self` images attend to nothing, as their output is a copy."""
    seen = visible(kind, layout)
    if side is not None:
        seen = seen & (layout.modality == side)[:, None, :]
    if kind.image_context == "self":
        seen = seen & (layout.modality == Modality.TEXT)[:, layout.offset :, None]
    return seen & layout.real()[:, layout.offset :, None]


@pairs
def test_no_block_is_missing_and_no_full_block_has_a_gap(kind, monkeypatch):
    monkeypatch.setattr(flex, "BLOCK", 4)
    point = AttentionKind(*kind)
    skipped = full = 0
    for seed, shape in enumerate(SHAPES * 3):
        tokens = random_tokens(shape, seed)
        for queries in (tokens.length, min(5, tokens.length)):
            layout = layout_of(tokens, queries)
            for side in sides_of(point):
                rule, all_of_it = flex.block_map(point, layout, side)
                assert not (rule & all_of_it).any()
                mask = seen_by(point, layout, side)
                pad = (0, -mask.shape[2] % 4, 0, -mask.shape[1] % 4)
                in_blocks = torch.nn.functional.pad(mask, pad).unflatten(2, (-1, 4)).unflatten(1, (-1, 4))
                assert not (in_blocks.any(4).any(2) & ~(rule | all_of_it)).any()
                assert in_blocks.all(4).all(2)[all_of_it].all()
                skipped += int((~(rule | all_of_it)).sum())
                full += int(all_of_it.sum())
    assert skipped
    assert full


@pairs
def test_the_rule_is_the_mask(kind):
    point = AttentionKind(*kind)
    for seed, shape in enumerate(SHAPES):
        tokens = random_tokens(shape, seed)
        for queries in (tokens.length, min(5, tokens.length)):
            layout = layout_of(tokens, queries)
            b, q, k = torch.meshgrid(torch.arange(2), torch.arange(queries), torch.arange(tokens.length), indexing="ij")
            real = layout.real()[:, layout.offset :, None]
            for side in sides_of(point):
                found = flex._rule(point, layout, side)(b, torch.zeros_like(b), q, k) & real
                assert torch.equal(found, seen_by(point, layout, side)), (shape, queries, side)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("queries", [None, 1], ids=["prefill", "decode"])
@pytest.mark.parametrize(
    "kind", [("self", "split"), ("self", "joint"), ("unit", "joint"), ("image", "split")], ids="-".join
)
def test_forward_on_cpu_equals_the_oracle(kind, queries):
    tokens = random_tokens("packed right", 1)
    qkv = random_qkv(tokens, queries, size=16)
    with torch.no_grad():
        found = attend([t.float() for t in qkv], tokens, kind, "flex")
    # float32, sums of some 30 terms
    torch.testing.assert_close(found.double(), attend(qkv, tokens, kind, "eager"), atol=1e-5, rtol=1e-5)


def test_training_on_cpu_is_refused():
    tokens = random_tokens("mixed")
    qkv = [t.requires_grad_() for t in random_qkv(tokens)]
    with pytest.raises(ValueError, match="implementation 'flex' has no backward on CPU: use 'sdpa'"):
        attend(qkv, tokens, "mmca", "flex")


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["sdpa", "flex"])
@pairs
def test_training_on_a_gpu_equals_the_oracle(kind, implementation):
    """Lengths beyond one block, so that blocks are skipped, full and mixed."""
    tokens = random_tokens("packed right", 1)
    tokens = type(tokens)(*(t.repeat_interleave(16, 1).cuda() for t in vars(tokens).values()))
    oracle = [t.cuda().requires_grad_() for t in random_qkv(tokens, size=32)]
    tested = [t.detach().float().requires_grad_() for t in oracle]
    expected, found = attend(oracle, tokens, kind, "eager"), attend(tested, tokens, kind, implementation)
    # float32 kernels may multiply in TF32: 10 bits
    torch.testing.assert_close(found.double(), expected, atol=1e-2, rtol=1e-2)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64, device="cuda").view_as(expected)
    grads = [torch.autograd.grad((out * weights).sum(), qkv) for out, qkv in ((found, tested), (expected, oracle))]
    for got, wanted in zip(*grads, strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got.double(), wanted, atol=4e-2, rtol=4e-2)

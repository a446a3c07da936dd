"""Every projector is what it says: shapes, twins in plain torch, training, saving, and what it refuses."""

import pytest
import torch
from PIL import Image
from torch import nn

from visualchat.dialogue import Dialogue, Turn
from visualchat.model import VisualChatConfig, VisualChatForConditionalGeneration
from visualchat.model.projector import PROJECTORS, ProjectorShape

# Both sides compute in float64 and differ in the order of their sums only.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
SHAPE = ProjectorShape(in_features=24, out_features=32, image_tokens=9)


def picture() -> Image.Image:
    return Image.effect_noise((16, 16), 90).convert("RGB")


def features(tokens: int = 9, width: int = 24) -> torch.Tensor:
    return torch.randn(2, tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def build(name: str, shape: ProjectorShape = SHAPE):
    torch.manual_seed(0)
    return PROJECTORS[name](shape).double()


@pytest.mark.parametrize("name", PROJECTORS)
def test_shapes_are_as_declared(name):
    projector = build(name)
    assert projector.shape is SHAPE
    for tokens in (9, 10, 16):  # a class token before 3 x 3 patches, and another grid
        expected = 9 if name == "perceiver" else tokens
        assert projector.tokens(tokens) == expected
        assert projector(features(tokens)).shape == (2, expected, 32)


@pytest.mark.parametrize("name", PROJECTORS)
def test_an_image_depends_on_no_other(name):
    projector, images = build(name), features()
    torch.testing.assert_close(projector(images)[1:], projector(images[1:]), **CLOSE)


@pytest.mark.parametrize("name", PROJECTORS)
def test_the_last_norm_is_what_comes_out(name):
    """Gain 0 and bias 3 at the end give 3 everywhere; `linear` and `mlp` have no norm at the end."""
    projector = build(name)
    if name in ("linear", "mlp"):
        assert projector.last_norm is None
        return
    nn.init.zeros_(projector.last_norm.weight)
    nn.init.constant_(projector.last_norm.bias, 3.0)
    assert (projector(features()) == 3.0).all()


def test_mlp_equals_two_maps_with_a_gelu():
    projector = build("mlp")
    first, _, second = projector
    inner = features() @ first.weight.T + first.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    assert (first.out_features, second.in_features) == (32, 32)
    torch.testing.assert_close(projector(features()), inner @ second.weight.T + second.bias, **CLOSE)


def test_vit_equals_a_pre_norm_layer_of_torch_and_the_baseline():
    shape = ProjectorShape(in_features=128, out_features=32, image_tokens=5)  # two heads of 64
    projector = build("vit", shape)
    layer, attention = projector.layer, projector.layer.self_attn
    twin = nn.TransformerEncoderLayer(
        128, 2, 512, dropout=0.0, activation=lambda x: x * torch.sigmoid(1.702 * x), batch_first=True, norm_first=True
    ).double()
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    with torch.no_grad():
        twin.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        twin.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    twin.self_attn.out_proj.load_state_dict(attention.out_proj.state_dict())
    for ours, theirs in (
        (layer.layer_norm1, twin.norm1),
        (layer.layer_norm2, twin.norm2),
        (layer.mlp.fc1, twin.linear1),
        (layer.mlp.fc2, twin.linear2),
    ):
        theirs.load_state_dict(ours.state_dict())
    given = features(5, 128)
    linear, norm = projector.baseline
    expected = nn.functional.layer_norm(linear(twin(given)), (32,), norm.weight, norm.bias, 1e-12)
    torch.testing.assert_close(projector(given), expected, **CLOSE)


def test_perceiver_sees_where_a_patch_is():
    """Without positions, queries would not tell an image from one with its patches in another order."""
    projector, given = build("perceiver"), features()
    assert (projector(given) - projector(given.flip(1))).abs().max() > 1e-3
    nn.init.zeros_(projector.resampler.pos_embed)
    torch.testing.assert_close(projector(given), projector(given.flip(1)), **CLOSE)


@pytest.mark.parametrize("name", PROJECTORS)
def test_it_trains(name):
    """Forty steps on one pair bring the error to less than half: every parameter gets a gradient that helps."""
    projector = build(name)
    given, wanted = features(), features(9, 32)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-2)
    errors = []
    for _ in range(40):
        loss = (projector(given) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(weight.grad is not None for weight in projector.parameters())
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < errors[0] / 2


@pytest.mark.parametrize("name", PROJECTORS)
def test_a_model_with_it_saves_loads_and_answers(name, make_model, processor, tmp_path):
    model = make_model(projector_type=name)
    batch = processor.batch([Dialogue((Turn.ask("Which?", [picture()], "that"),))])
    assert model.get_image_features(batch["pixel_values"]).pooler_output.shape == (1, 4, 32)
    model.train()(**batch).loss.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.multi_modal_projector.parameters() if weight.ndim == 2)
    model.eval().save_pretrained(tmp_path)
    loaded = VisualChatForConditionalGeneration.from_pretrained(tmp_path)
    weights = loaded.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in model.state_dict().items())
    prompt = processor.prompt([Dialogue((Turn.ask("Which?", [picture()]),))])
    assert torch.equal(*(m.generate(**prompt, max_new_tokens=3, do_sample=False) for m in (model, loaded)))


@pytest.mark.parametrize("name", ["linear_norm", "vit", "perceiver"])
def test_only_the_last_norm_starts_at_the_spread_of_words(name, make_model):
    model = make_model(projector_type=name)
    spread = model.get_input_embeddings().weight.std()
    last = model.multi_modal_projector.last_norm
    torch.testing.assert_close(last.weight, torch.full_like(last.weight, spread.item()))
    others = [m for m in model.multi_modal_projector.modules() if isinstance(m, nn.LayerNorm) and m is not last]
    assert len(others) == {"linear_norm": 0, "vit": 2, "perceiver": 2}[name]
    assert all((norm.weight == 1).all() for norm in others)


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_perceiver_gives_as_many_tokens_as_asked(strategy, make_model, processor):
    """The encoder gives 4 patches, with or without a class token; an image takes 9 tokens."""
    model = make_model(projector_type="perceiver", image_seq_length=9, vision_feature_select_strategy=strategy)
    pixels = processor.batch([Dialogue((Turn.ask("Which?", [picture()], "that"),))])["pixel_values"]
    assert model.get_image_features(pixels).pooler_output.shape == (1, 9, 32)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("linear", (0, 32, 9), "in_features must be at least 1, found 0"),
        ("mlp", (24, -1, 9), "out_features must be at least 1, found -1"),
        ("vit", (24, 32, 0), "image_tokens must be at least 1, found 0"),
        ("perceiver", (24, 32, 10), "image_seq_length must be a square number such as 256, found 10"),
        ("perceiver", (24, 30, 9), "embedding size that is a multiple of 4, found 30"),
    ],
)
def test_sizes_that_cannot_be_are_refused(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        PROJECTORS[name](ProjectorShape(*sizes))


def test_unknown_projector_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=f"unknown projector 'qformer', expected one of {', '.join(PROJECTORS)}"):
        VisualChatConfig(projector_type="qformer")


@pytest.mark.parametrize(("width", "millions"), [(4096, 147.9), (5120, 184.8), (8192, 295.7)], ids=["7B", "13B", "70B"])
def test_trainable_sizes_of_the_paper(width, millions):
    """Embedding of 32000 words and a linear projector of Qwen-VL's tokens, in LLaMA-2's sizes."""
    with torch.device("meta"):
        projector = PROJECTORS["linear"](ProjectorShape(4096, width, 256))
    trained = 32_000 * width + sum(weight.numel() for weight in projector.parameters())
    assert round(trained / 1e6, 1) == millions

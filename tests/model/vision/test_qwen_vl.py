"""Qwen-VL's encoder computes what its description says; sizes, gradients and errors."""

import copy

import pytest
import torch
from qwen_checkpoints import VISUAL, random_weights
from qwen_oracle import encode, resample, sincos

from visualchat.model import VisualChatConfig
from visualchat.model.vision import QwenVLVisionConfig, QwenVLVisionModel
from visualchat.model.vision.modeling_qwen_vl import expected_shapes
from visualchat.model.vision.resampler import CrossAttention, Resampler, sincos_positions

# Both sides compute in float64 and differ in the order of their sums only.
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(scope="module")
def encoder() -> QwenVLVisionModel:
    """Tiny, in float64, with random weights everywhere."""
    model = QwenVLVisionModel(QwenVLVisionConfig.from_qwen(VISUAL)).double().eval()
    weights = random_weights()
    del weights["proj"]
    model.load_state_dict({name: weight.double() for name, weight in weights.items()})
    return model


@pytest.mark.parametrize("side", [56, 28, 14 * 16, 14 * 18], ids=["4x4", "2x2", "as stored", "larger"])
def test_encoder_equals_its_description(encoder, side):
    images = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = encoder(images).last_hidden_state
    assert found.shape == (2, 9, 256)
    torch.testing.assert_close(found, encode(random_weights(), images, heads=4, resampler_heads=2), **CLOSE)


def test_a_float32_encoder_stays_near_its_float64_twin(encoder):
    single = copy.deepcopy(encoder).float()
    images = torch.randn(1, 3, 56, 56)
    found, expected = single(images).last_hidden_state, encoder(images.double()).last_hidden_state
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)  # float32's rounding over two blocks


def test_positions_are_sines_then_cosines_of_column_then_row():
    torch.testing.assert_close(
        sincos_positions(16, 64).double(), sincos(16, 64), rtol=0, atol=1e-7
    )  # stored as float32
    model = QwenVLVisionModel(QwenVLVisionConfig.from_qwen(VISUAL))
    assert torch.equal(model.attn_pool.pos_embed, sincos_positions(3, 256))
    assert "attn_pool.pos_embed" not in dict(model.named_parameters())


def test_cross_attention_equals_torchs_own():
    torch.manual_seed(0)
    ours = CrossAttention(24, 3).double()
    theirs = torch.nn.MultiheadAttention(24, 3, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    queries, keys, values = (torch.randn(2, n, 24, dtype=torch.float64) for n in (5, 7, 7))
    torch.testing.assert_close(ours(queries, keys, values), theirs(queries, keys, values)[0], **CLOSE)


def test_a_resampler_gives_a_class_token_no_place():
    torch.manual_seed(0)
    resampler = Resampler(12, 16, side=2, heads=2).double()
    assert torch.equal(resampler.key_positions(10)[0], torch.zeros(16, dtype=torch.float64))
    assert torch.equal(resampler.key_positions(10)[1:], resampler.key_positions(9))
    features = torch.randn(1, 9, 12, dtype=torch.float64)
    weights = {f"r.{name}": weight for name, weight in resampler.state_dict().items()}
    torch.testing.assert_close(resampler(features)[0], resample(features[0], weights, "r", heads=2), **CLOSE)
    with pytest.raises(ValueError, match="square grid of tokens, and at most one before it, found 12"):
        resampler.key_positions(12)


def test_gradient_checkpointing_changes_no_gradient(encoder):
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(encoder).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert all(block.gradient_checkpointing for block in model.transformer.resblocks)
        model(torch.ones(1, 3, 56, 56, dtype=torch.float64)).last_hidden_state.square().sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_every_linear_layer_is_called_as_a_module(encoder):
    """Adapters, quantized layers and ZeRO-3 live in a layer's own call; a weight that is read past it escapes them."""
    called = set()
    hooks = [
        layer.register_forward_hook(lambda layer, *_: called.add(layer))
        for layer in encoder.modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    encoder(torch.zeros(1, 3, 56, 56, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    assert len(called) == len(hooks) == 2 * 4 + 2


def test_published_sizes():
    """Qwen-VL's paper, table 1: 1.9B with a resampler of 0.08B."""
    with torch.device("meta"):
        model = QwenVLVisionModel(QwenVLVisionConfig())
    assert expected_shapes(model.config) == {name: tuple(w.shape) for name, w in model.state_dict().items()}
    parameters = {name: weight.numel() for name, weight in model.named_parameters()}
    assert sum(parameters.values()) == 1_917_784_832
    assert sum(size for name, size in parameters.items() if name.startswith("attn_pool")) == 75_005_952
    published = {"heads": 16, "image_size": 448, "layers": 48, "mlp_ratio": 4.9231, "output_dim": 4096, "width": 1664}
    assert QwenVLVisionConfig.from_qwen({**published, "patch_size": 14}).to_dict() == model.config.to_dict()


@pytest.mark.parametrize("size", [(56, 42), (28, 112), (60, 60)])
def test_a_picture_that_is_no_square_of_patches_is_refused(encoder, size):
    with pytest.raises(ValueError, match=rf"square images of a multiple of 14 pixels, found \({size[0]}, {size[1]}\)"):
        encoder(torch.zeros(1, 3, *size, dtype=torch.float64))


def test_layers_that_make_no_sense_are_refused(encoder):
    with pytest.raises(ValueError, match="resampled tokens only: leave vision_feature_layer null"):
        encoder(torch.zeros(1, 3, 56, 56, dtype=torch.float64), output_hidden_states=True)
    for wrong in ({"vision_feature_layer": -2}, {"vision_feature_select_strategy": "default"}):
        with pytest.raises(ValueError, match="Qwen-VL's encoder gives its resampled tokens only, none of them a class"):
            VisualChatConfig(vision_config={"model_type": "qwen_vl_vision"}, **wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 60}, "image_size must be a multiple of patch_size, found 60 and 14"),
        ({"heads": 5}, "width must be a multiple of num_attention_heads, found 32 and 5"),
        ({"output_dim": 96}, "hidden_size must be a multiple of num_resampler_heads, found 96 and 0"),
        ({"n_queries": 10}, "square grid, found n_queries 10"),
        ({"width": None}, "visual configuration lacks width"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    visual = {name: value for name, value in (VISUAL | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        QwenVLVisionConfig.from_qwen(visual)

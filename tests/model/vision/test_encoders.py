"""Every encoder that a file under conf/ names: its published size, and its tiny twin from a folder to an answer."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from qwen_checkpoints import VISUAL, random_weights, write_checkpoint
from qwen_oracle import encode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from visualchat.dialogue import Dialogue, Turn
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.vision import load_vision_tower

CONF = Path(__file__).resolve().parents[3] / "conf" / "model" / "vision"
YAML = {path.stem: yaml.safe_load(path.read_text()) for path in CONF.glob("*.yaml")}

PUBLISHED = {  # parameters in millions, as their authors or the Hub's files have them, without text towers
    "clip_large": 303.2,  # 304.0 with the projection of the class token, 1024 x 768
    "openclip_bigg": 1842.8,  # 1844.9 with the projection of the class token, 1664 x 1280
    "siglip_so400m": 428.2,
    "dinov2_large": 304.4,
    "qwen_vl": 1917.8,
}

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SMALL, "vocab_size": 20}


def write_clip(folder: Path) -> None:
    vision = {**SMALL, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)


def write_siglip(folder: Path) -> None:
    vision = {**SMALL, "image_size": 16, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=TEXT, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)


def write_dinov2(folder: Path) -> None:
    """Positions are stored for 32 pixels, the image processor gives 16."""
    sizes = {name: size for name, size in SMALL.items() if name != "intermediate_size"}
    Dinov2Model(Dinov2Config(**sizes, image_size=32, patch_size=8)).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)


def write_qwen(folder: Path) -> None:
    write_checkpoint(folder, random_weights())


ENCODERS = {"clip": (write_clip, 5), "siglip": (write_siglip, 4), "dinov2": (write_dinov2, 5), "qwen": (write_qwen, 9)}


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request, tmp_path_factory) -> SimpleNamespace:
    """Folder and tokens an image of a tiny encoder in the form that its Hub repository has."""
    write, tokens = ENCODERS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    write(folder)
    return SimpleNamespace(name=request.param, folder=folder, tokens=tokens)


def dialogues(*, images: bool = True) -> list[Dialogue]:
    pictures = [Image.effect_noise((40, 30), 90).convert("RGB"), Image.new("RGB", (20, 30), "red")] if images else []
    return [Dialogue((Turn.ask("Which?", pictures, "that one"), Turn.ask("Sure?", pictures[:1], "yes")))]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_size(name):
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(**YAML[name]["architecture"]))
    assert round(model.num_parameters() / 1e6, 1) == PUBLISHED[name]


def test_every_encoder_has_a_size_or_is_at_hand():
    assert {name for name, content in YAML.items() if content["architecture"] is not None} == PUBLISHED.keys()
    assert YAML.keys() - PUBLISHED.keys() == {"tiny"}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_tokens_of_an_image(name):
    """What image_seq_length says is what the encoder gives for pictures of the size that its image processor makes."""
    content = YAML[name]
    config = AutoConfig.for_model(**content["architecture"] | {"num_hidden_layers": 1})
    side = 224 if name == "dinov2_large" else config.image_size
    with torch.device("meta"):
        out = AutoModel.from_config(config)(torch.zeros(1, 3, side, side))
    assert out.last_hidden_state.shape == (1, content["image_seq_length"], config.hidden_size)


def test_from_a_folder_to_an_answer_and_back(encoder, backbones, tmp_path):
    torch.manual_seed(0)
    model = VisualChatForConditionalGeneration.from_backbones(
        encoder.folder, backbones.language, image_seq_length=encoder.tokens, projector_type="linear_norm"
    )
    processor = VisualChatProcessor.from_backbones(encoder.folder, backbones.language, image_seq_length=encoder.tokens)
    assert str(encoder.folder) not in str(model.config)
    batch = processor.batch(dialogues())
    assert model.get_image_features(batch["pixel_values"]).pooler_output.shape == (3, encoder.tokens, 32)

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, loaded_processor = (
        AutoModelForImageTextToText.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
    )
    again = loaded_processor.batch(dialogues())
    assert all(torch.equal(again[name], batch[name]) for name in batch if name != "pixel_values")
    assert again["pixel_values"].shape == batch["pixel_values"].shape
    weights = model.state_dict()
    assert weights.keys() == loaded.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)

    prompt = processor.prompt([Dialogue((Turn.ask("Which?", dialogues()[0].images),))])
    answers = [m.generate(**prompt, max_new_tokens=5, do_sample=False) for m in (model, loaded)]
    assert answers[0].shape[1] > prompt["input_ids"].shape[1]
    assert torch.equal(*answers)


def test_the_weights_are_the_folders(encoder):
    """The features are those of the encoder by itself, or, for Qwen-VL, of its description."""
    pixels = torch.randn(2, 3, 56, 56) if encoder.name == "qwen" else torch.randn(2, 3, 16, 16)
    found = load_vision_tower(encoder.folder, torch.float64)(pixels.double()).last_hidden_state
    if encoder.name == "qwen":
        expected = encode(random_weights(), pixels, heads=VISUAL["heads"], resampler_heads=2)
    else:
        whole = AutoModel.from_pretrained(encoder.folder, dtype=torch.float64)
        expected = getattr(whole, "vision_model", whole)(pixels.double()).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)  # float64, another order of sums


def test_a_batch_without_images_reaches_encoder_and_projector(encoder, backbones):
    model = VisualChatForConditionalGeneration.from_backbones(
        encoder.folder, backbones.language, image_seq_length=encoder.tokens
    )
    processor = VisualChatProcessor.from_backbones(encoder.folder, backbones.language, image_seq_length=encoder.tokens)
    model.train()
    model(**processor.batch(dialogues(images=False))).loss.backward()
    touched = [*model.multi_modal_projector.parameters(), next(model.vision_tower.parameters())]
    assert all(torch.equal(weight.grad, torch.zeros_like(weight)) for weight in touched)


def test_a_folder_that_lacks_weights_of_the_encoder_is_refused(tmp_path):
    write_clip(tmp_path)
    model = CLIPModel.from_pretrained(tmp_path)
    state = {name: weight for name, weight in model.state_dict().items() if "layers.1.mlp.fc1" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"the weights lack encoder.layers.1.mlp.fc1.bias, .* \(2 names of the vision"):
        load_vision_tower(tmp_path, torch.float32)

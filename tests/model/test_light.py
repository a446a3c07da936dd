"""A light folder gives the very model back, names its base, and refuses another."""

import hashlib
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel

from visualchat.dialogue import Dialogue, Turn
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.light import load_light, save_light
from visualchat.model.trainable import Trainable, set_trainable
from visualchat.tiny import backbone


@pytest.fixture
def tuned(make_model):
    """A model whose trained parts have moved."""
    model = make_model(projector_type="linear_norm", attention_kind="mmca", attention_implementation="eager")
    set_trainable(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def folder(tuned, backbones, tmp_path):
    save_light(tuned, tmp_path / "light", backbones.vision, backbones.language)
    return tmp_path / "light"


@pytest.fixture
def batch(processor):
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    return processor.batch([Dialogue((Turn.ask("Which?", [red, blue], "red"), Turn.ask("And?", [], "blue")))])


def test_the_model_comes_back(tuned, folder, batch):
    loaded = load_light(folder)
    assert torch.equal(loaded(**batch).logits, tuned(**batch).logits)
    assert loaded.config.to_dict() == tuned.config.to_dict()
    assert not loaded.training
    trains = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert trains == {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}


def test_only_what_trains_is_written(tuned, folder):
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert 4 * trained < (folder / "trained.safetensors").stat().st_size < 4 * trained + 2000
    assert "/tmp" not in (folder / "light.json").read_text()


def test_a_base_of_another_dtype_than_what_trains(make_model, backbones, tmp_path, batch):
    model = make_model(dtype=torch.bfloat16)
    set_trainable(model)
    save_light(model, tmp_path, backbones.vision, backbones.language)
    loaded = load_light(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_backbones_may_move(tuned, folder, backbones, batch, tmp_path):
    elsewhere = tmp_path / "moved"
    shutil.copytree(backbones.language, elsewhere)
    assert torch.equal(load_light(folder, language=elsewhere)(**batch).logits, tuned(**batch).logits)


def test_light_folder_and_backbones_may_move_together(tuned, backbones, batch, tmp_path):
    for name in ("vision", "language"):
        shutil.copytree(getattr(backbones, name), tmp_path / "here" / name)
    save_light(tuned, tmp_path / "here" / "light", tmp_path / "here" / "vision", tmp_path / "here" / "language")
    (tmp_path / "here").rename(tmp_path / "there")
    assert torch.equal(load_light(tmp_path / "there" / "light")(**batch).logits, tuned(**batch).logits)


def test_another_base_is_refused_with_both_names(folder, backbones, tmp_path):
    other = CLIPVisionModel.from_pretrained(backbones.vision)
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(1.01)
    other.save_pretrained(tmp_path / "other")
    message = r"belongs to another base: it was trained on vision .*backbones0/vision .*found vision .*/other and"
    with pytest.raises(ValueError, match=message):
        load_light(folder, vision=tmp_path / "other")


def seal(folder):
    """Have the card agree with a file that a test has changed."""
    card = json.loads((folder / "light.json").read_text())
    card["sha256"] = hashlib.sha256((folder / "trained.safetensors").read_bytes()).hexdigest()
    (folder / "light.json").write_text(json.dumps(card))


def test_damage_is_noticed(folder):
    data = bytearray((folder / "trained.safetensors").read_bytes())
    data[-100] ^= 1
    (folder / "trained.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"light: trained.safetensors is damaged, it is not what was saved"):
        load_light(folder)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_model_that_is_not_finite_is_neither_saved_nor_loaded(tuned, folder, backbones, tmp_path, value):
    state = load_file(folder / "trained.safetensors")
    name = "multi_modal_projector.0.bias"
    state[name][3] = value
    save_file(state, folder / "trained.safetensors")
    seal(folder)
    with pytest.raises(ValueError, match=f"light: trained parameters are not finite: {name}$"):
        load_light(folder)
    tuned.get_parameter(name).data[3] = value
    with pytest.raises(ValueError, match=f"trained parameters are not finite is not saved: {name}$"):
        save_light(tuned, tmp_path / "new", backbones.vision, backbones.language)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("part", "noted"), [("vision", "../gone/vision"), ("language", "../../a/b/c"), ("vision", "/etc")]
)
def test_a_base_that_is_not_where_it_was_is_asked_for(folder, part, noted):
    card = json.loads((folder / "light.json").read_text())
    card["base"][part] = noted
    (folder / "light.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=rf"names its {part} base as {noted}, .*say where it is now with {part}="):
        load_light(folder)


def test_a_missing_and_a_surplus_part_are_named(folder):
    state = load_file(folder / "trained.safetensors")
    state["extra"] = state.pop("multi_modal_projector.0.bias")
    save_file(state, folder / "trained.safetensors")
    seal(folder)
    message = (
        r"projector.0.bias is missing in trained.safetensors; extra is surplus in .*; extra does not train in the model"
    )
    with pytest.raises(ValueError, match=message):
        load_light(folder)


def test_another_size_is_named(folder):
    state = load_file(folder / "trained.safetensors")
    card = json.loads((folder / "light.json").read_text())
    name = "language_model.model.embed_tokens.weight"
    state[name] = state[name][:-1]
    card["trained"][name][0] -= 1
    save_file(state, folder / "trained.safetensors")
    (folder / "light.json").write_text(json.dumps(card))
    seal(folder)
    with pytest.raises(ValueError, match=r"embed_tokens.weight is \(\d+, 32\), in the model \(\d+, 32\)"):
        load_light(folder)


def test_no_light_folder(tmp_path, model, backbones):
    with pytest.raises(ValueError, match=r"not a light folder \(light.json is missing\)"):
        load_light(tmp_path)
    with pytest.raises(ValueError, match="a light folder would be empty"):
        save_light(model.requires_grad_(False), tmp_path, backbones.vision, backbones.language)


CHOICES = {
    "projector": Trainable(embedding=False),
    "adapters": Trainable(vision="lora", language="lora", lora_rank=4, lora_alpha=8.0, lora_dropout=0.1),
    "vision": Trainable(vision="full"),
    "all": Trainable(vision="full", language="full"),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_whatever_trained_comes_back(make_model, backbones, batch, tmp_path, choice):
    """With adapters beside the layers, and with token embeddings that the base does not have."""
    model = make_model(projector_type="linear_norm", vocab_size=310)
    set_trainable(model, CHOICES[choice])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    save_light(model, tmp_path, backbones.vision, backbones.language, CHOICES[choice])
    loaded = load_light(tmp_path)
    assert torch.equal(loaded(**batch).logits, model.eval()(**batch).logits)
    assert loaded.get_input_embeddings().num_embeddings == 310


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_adapters_and_the_bits_of_the_base_come_back(tmp_path, bits):
    trainable = Trainable(vision="lora", language="lora", lora_rank=2)
    tiny = backbone("vision"), backbone("language_mixed")  # wide enough for 4 bits
    model = VisualChatForConditionalGeneration.from_backbones(*tiny, image_seq_length=16, language_bits=bits)
    dialogue = Dialogue((Turn.ask("Which?", [Image.new("RGB", (16, 16), "red")], "red"),))
    batch = VisualChatProcessor.from_backbones(*tiny, image_seq_length=16).batch([dialogue])
    set_trainable(model, trainable)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    save_light(model, tmp_path, *tiny, trainable)
    loaded = load_light(tmp_path)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert sum("lora" in name for name in load_file(tmp_path / "trained.safetensors")) > 0


def test_a_vocabulary_that_grew_comes_back(make_model, backbones, batch, tmp_path):
    model = make_model(vocab_size=400)
    set_trainable(model)
    save_light(model, tmp_path, backbones.vision, backbones.language)
    assert torch.equal(load_light(tmp_path)(**batch).logits, model(**batch).logits)


def test_a_note_that_does_not_fit_what_was_saved_is_refused(tuned, backbones, tmp_path):
    save_light(tuned, tmp_path, backbones.vision, backbones.language, Trainable(vision="lora", lora_rank=2))
    with pytest.raises(ValueError, match=r"lora_A.default.weight, which trains in the model, was not saved"):
        load_light(tmp_path)
    save_light(tuned, tmp_path, backbones.vision, backbones.language, Trainable(embedding=False))
    with pytest.raises(ValueError, match=r"embed_tokens.weight does not train in the model"):
        load_light(tmp_path)

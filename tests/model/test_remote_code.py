"""Folders that bring code of their own: it is not run, nobody is asked, and an error says so. Our own folders load."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.language import load_language_model
from visualchat.model.remote_code import load_without_code
from visualchat.model.vision import load_image_processor, load_vision_tower
from visualchat.plan.measure import local_tokenizer
from visualchat.plan.shapes import backbone_config

CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoImageProcessor", "AutoProcessor")


def spoil(folder, *files):
    """Let the files of a model's folder name code that lies beside them and leaves a mark when it runs."""
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    for name in files:
        path = folder / name
        fields = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**fields, **KINDS[name], "auto_map": dict.fromkeys(CLASSES, "evil.X")}))
    return folder


KINDS = {
    "config.json": {"model_type": "evil"},
    "tokenizer_config.json": {"tokenizer_class": "Evil"},
    "preprocessor_config.json": {"image_processor_type": "Evil"},
    "processor_config.json": {
        "image_processor": {"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "evil.X"}}
    },
}


@pytest.fixture
def nobody_is_asked(monkeypatch):
    def asked(prompt=""):
        pytest.fail(f"asked: {prompt}")

    monkeypatch.setattr("builtins.input", asked)


LOADERS = {
    "vision": (load_vision_tower, "vision", ["config.json"], {"dtype": torch.float32}),
    "pictures": (load_image_processor, "vision", ["preprocessor_config.json"], {}),
    "language": (load_language_model, "language", ["config.json"], {"dtype": torch.float32}),
    "planned": (backbone_config, "language", ["config.json"], {}),
    "counted": (local_tokenizer, "language", ["tokenizer_config.json"], {}),
}


@pytest.mark.parametrize("case", LOADERS)
def test_code_of_a_backbone_is_not_run(case, backbones, tmp_path, nobody_is_asked):
    load, part, files, keywords = LOADERS[case]
    folder = tmp_path / part
    shutil.copytree(getattr(backbones, part), folder)
    spoil(folder, *files)
    with pytest.raises(ValueError, match=f"{folder} can only be loaded by code that it brings itself"):
        load(folder, **keywords)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("file", ["tokenizer_config.json", "processor_config.json"])
def test_code_of_a_saved_processor_is_not_run(file, processor, tmp_path, nobody_is_asked):
    processor.save_pretrained(tmp_path)
    spoil(tmp_path, file)
    with pytest.raises(ValueError, match=f"{tmp_path} can only be loaded by code that it brings itself"):
        VisualChatProcessor.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_our_own_folders_load_without_the_code_that_they_name(make_model, processor, tmp_path, nobody_is_asked):
    make_model().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"]
    (tmp_path / "visualchat_auto.py").write_text("raise SystemExit('it was run')")
    VisualChatForConditionalGeneration.from_pretrained(tmp_path)
    assert VisualChatProcessor.from_pretrained(tmp_path).template == processor.template
    for auto in (AutoConfig, AutoTokenizer):
        load_without_code(auto.from_pretrained, tmp_path)

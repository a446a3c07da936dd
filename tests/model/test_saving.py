"""The whole model as a folder: sharded, in its own precision, without paths of this machine; and pushed to the Hub."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.utils import hub

from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor


@pytest.fixture
def folder(make_model, processor, tmp_path):
    """A model of half precision in shards, with settings for generation of its own, and its processor."""
    model = make_model(projector_type="linear_norm", dtype=torch.bfloat16)
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_shards_precision_and_generation_come_back(make_model, folder):
    assert len(list(folder.glob("*.safetensors"))) > 2
    expected = make_model(projector_type="linear_norm", dtype=torch.bfloat16).state_dict()
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    found = loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert {weight.dtype for weight in found.values()} == {torch.bfloat16}
    assert loaded.generation_config.max_new_tokens == 3
    assert loaded.generation_config.eos_token_id == loaded.config.text_config.eos_token_id


def test_no_file_names_this_machine(folder, backbones):
    for file in folder.glob("*.json"):
        for place in (folder.parent, backbones.vision.parent):
            assert str(place) not in file.read_text(), file.name


def test_loading_makes_no_second_copy(folder, monkeypatch):
    """The model is built without memory; weights come straight from the files."""
    devices = []
    build = VisualChatForConditionalGeneration.__init__

    def watched(self, config, *args, **kwargs):
        build(self, config, *args, **kwargs)
        devices.extend(parameter.device.type for parameter in self.parameters())

    monkeypatch.setattr(VisualChatForConditionalGeneration, "__init__", watched)
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    assert set(devices) == {"meta"}
    assert all(tensor.device.type == "cpu" for tensor in (*loaded.parameters(), *loaded.buffers()))


def test_a_pipeline_takes_the_folder(folder):
    pipe = pipeline("image-text-to-text", model=str(folder))
    content = [{"type": "image", "image": Image.new("RGB", (20, 20), "red")}, {"type": "text", "text": "What is it?"}]
    said = pipe([{"role": "user", "content": content}], generate_kwargs={"do_sample": False}, return_full_text=False)
    assert isinstance(pipe.model, VisualChatForConditionalGeneration)
    assert isinstance(said[0]["generated_text"], str)


def test_the_way_to_the_hub_and_back(folder, processor, tmp_path, monkeypatch):
    repository = tmp_path / "hub"
    commits = []

    class Hub:
        def create_repo(self, repo_id, **kwargs):
            repository.mkdir(exist_ok=True)
            return SimpleNamespace(repo_id=repo_id)

        def create_commit(self, repo_id, operations, **kwargs):
            for operation in operations:
                shutil.copy(operation.path_or_fileobj, repository / operation.path_in_repo)
            commits.append(repo_id)

    monkeypatch.setattr(hub, "hf_api", Hub)
    monkeypatch.setattr(
        hub, "create_and_tag_model_card", lambda *args, **kwargs: ModelCard("---\nlibrary_name: transformers\n---\n")
    )
    model = VisualChatForConditionalGeneration.from_pretrained(folder)
    model.push_to_hub("someone/model", max_shard_size="40KB")
    processor.push_to_hub("someone/model")
    assert commits == ["someone/model"] * 2  # model and processor
    again = AutoModelForImageTextToText.from_pretrained(repository)
    expected, found = model.state_dict(), again.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert isinstance(AutoProcessor.from_pretrained(repository), VisualChatProcessor)
    assert json.loads((repository / "config.json").read_text())["architectures"] == [type(model).__name__]


REMOTE = """
import os, sys
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline
folder = sys.argv[1]

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "visualchat":
            raise ModuleNotFoundError("No module named 'visualchat'")

if sys.argv[2] == "missing":
    sys.meta_path.insert(0, Missing())
trust = {"trust_remote_code": True}
model = AutoModelForImageTextToText.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
inputs = processor(images=Image.new("RGB", (20, 20), "red"), text="What is it?").to(model.dtype)
answer = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1]:]
said = processor.decode(answer, skip_special_tokens=True)
pipe = pipeline("image-text-to-text", model=folder, **trust)
content = [{"type": "image", "image": Image.new("RGB", (20, 20), "red")}, {"type": "text", "text": "What is it?"}]
settings = {"generate_kwargs": {"max_new_tokens": 5, "do_sample": False}, "return_full_text": False}
assert pipe([{"role": "user", "content": content}], **settings)[0]["generated_text"] == said
assert type(AutoModel.from_pretrained(folder, **trust)).__name__ == "VisualChatModel"
model.save_pretrained(folder + "-again")
assert os.listdir(folder + "-again").count("visualchat_auto.py") == 1
assert not any(name.startswith("modeling") for name in os.listdir(folder + "-again"))
print("said", [ord(c) for c in said], AutoConfig.from_pretrained(folder, **trust).model_type)
"""


@pytest.mark.slow
def test_a_process_that_never_imported_the_package_loads_the_folder(folder, tmp_path):
    def run(*args):
        settings = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
        command = [sys.executable, "-c", REMOTE, str(folder), *args]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=settings)

    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    inputs = processor(images=Image.new("RGB", (20, 20), "red"), text="What is it?").to(model.dtype)
    answer = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    done = run("there")
    assert done.returncode == 0, done.stderr
    assert f"said {[ord(c) for c in processor.decode(answer, skip_special_tokens=True)]} visualchat" in done.stdout
    missing = run("missing")
    assert missing.returncode != 0
    assert "pip install visualchat" in missing.stderr

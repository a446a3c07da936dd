"""The whole model as a folder: sharded, in its own precision, without paths of this machine; and pushed to the Hub."""

import json
import shutil
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

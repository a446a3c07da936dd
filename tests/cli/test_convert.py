"""`visualchat-convert`: there and back, as people run it."""

import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from visualchat.cli.main import convert
from visualchat.model import VisualChatProcessor
from visualchat.model.saved import load_model


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command in this process."""
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["visualchat-convert", *arguments])
        convert()

    yield run
    GlobalHydra.instance().clear()


def test_there_and_back(command, make_model, processor, backbones, tmp_path, capsys):
    model = make_model(projector_type="linear_norm")
    model.save_pretrained(tmp_path / "a")
    command("to_published", "folder=a", "file=published/pytorch_model.bin")
    command(
        "from_published",
        "file=published/pytorch_model.bin",
        "folder=b",
        f"model.vision.path={backbones.vision}",
        f"model.language.path={backbones.language}",
        "model.vision.image_seq_length=4",
        "model.vision.select_strategy=default",
        "attention=causal",
    )
    assert "visualchat-chat folder=b" in capsys.readouterr().out
    again = load_model(tmp_path / "b")
    assert again.config.attention_kind == "causal"
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
    assert VisualChatProcessor.from_pretrained(tmp_path / "b").image_seq_length == 4
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "published"}  # and no folder of the run

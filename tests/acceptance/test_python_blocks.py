"""Every Python block of the documents runs, in a folder in which a model has been trained."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import serving
from lines import DOCUMENTS, ROOT, blocks
from transformers import AutoModelForCausalLM

from visualchat.model import VisualChatProcessor
from visualchat.tiny import backbone
from visualchat.tiny.scenes import draw, random_scene

SERVER = "http://127.0.0.1:8000/v1"
"""Where blocks expect the server that their page has started."""

pytestmark = pytest.mark.slow

BLOCKS = [
    pytest.param(text, id=f"{path.name}-{number}")
    for path in DOCUMENTS
    for number, text in enumerate(text for language, text in blocks(path.read_text("utf-8")) if language == "python")
]


def given(text: str, after_training: Path) -> dict[str, Any]:
    """What a block may speak of without making it, by the names that documents use: a row of text with two images.

    And the folder of a saved model, with two pictures and messages about them.

    Shapes: B batch = 1, S tokens = 12, H heads = 4, D head size = 32, N images = 2, M = 16 states an image of 1024.
    """
    model = AutoModelForCausalLM.from_pretrained(backbone("language_mixed")).eval() if "model" in text else None
    heads = torch.randn(3, 1, 4, 12, 32).unbind()
    types = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0]])  # 1: a token of an image
    folder = next(after_training.glob("outputs/**/model"))
    pictures = [draw(random_scene(seed)) for seed in (1, 2)]
    question = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": "What is it?"}]
    return {
        "folder": folder,
        "processor": VisualChatProcessor.from_pretrained(folder),
        "images": pictures,
        "messages": [{"role": "user", "content": question}],
        "model": model,
        "input_ids": torch.arange(3, 15)[None],
        **dict(zip(("query", "key", "value"), heads, strict=True)),
        "types": types,
        "units": torch.tensor([[-1, 0, 0, 0, -1, 1, 1, 1, -1, -1, -1, -1]]),  # an image with its label
        "mask": torch.ones_like(types, dtype=torch.bool),
        "states": torch.randn(1, 2, 16, 1024),
        "positions": torch.tensor([[2, 6]]),
    }


@pytest.mark.parametrize("text", BLOCKS)
def test_the_block_runs(text, after_training, monkeypatch, capsys):
    monkeypatch.chdir(after_training)
    names = given(text, after_training)
    for name in re.findall(r'"(\w+\.png)"', text):
        draw(random_scene(3)).save(name)
    with ExitStack() as stack:
        if SERVER in text:
            _, address = stack.enter_context(serving(after_training, "max_new_tokens=4"))
            text = text.replace(SERVER, address)
        exec(compile(text, "block", "exec"), names)
    if "print(" in text:
        assert capsys.readouterr().out.strip()


def test_the_readme_needs_ten_lines():
    readme = (ROOT / "README.md").read_text("utf-8")
    (example,) = (text for language, text in blocks(readme) if language == "python")
    assert len([line for line in example.splitlines() if line and "import" not in line]) <= 10

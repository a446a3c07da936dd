"""The README's dialogue is what its script draws, and what the README says of it."""

import base64
import html
import importlib.util
import io
import re
import sys

import numpy as np
import pytest
from commands import run
from lines import ROOT
from PIL import Image

from visualchat.tiny.scenes import draw

SCRIPT = ROOT / "docs" / "dialogue.py"
FIGURE = ROOT / "docs" / "images" / "dialogue.svg"
PICTURE = re.compile(r"data:image/png;base64,([^\"]+)")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("dialogue_figure", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(svg: str) -> list[str]:
    """The model's answers, without the true ones beside them."""
    shown = [html.unescape(text) for text in re.findall(r'<text class="answer".*?>(.*?)</text>', svg)]
    return [re.sub(r" \(true: .*\)$", "", text) for text in shown]


def test_the_committed_figure_is_the_scripts(script):
    """Pictures are compared by their pixels: how they are compressed is another library's affair."""
    sketch, svg = script.chosen(), FIGURE.read_text(encoding="utf-8")
    assert PICTURE.sub("", svg) == PICTURE.sub("", script.figure(sketch, answers(svg)))
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in PICTURE.findall(svg)]
    for shown, scene in zip(pictures, sketch.scenes, strict=True):
        assert np.array_equal(np.asarray(shown), np.asarray(draw(scene)))


def test_the_first_screen_shows_a_dialogue_and_the_two_commands():
    """Title, a sentence, the dialogue, how to begin; what it is in detail comes after."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:16]
    figure = next(number for number, line in enumerate(lines) if FIGURE.name in line)
    block = lines.index("```bash")
    assert lines[0] == "# VisualChat"
    assert figure < block
    assert [line.split()[:2] for line in lines[block + 1 : block + 3]] == [["make", "train"], ["make", "test"]]


def test_the_readme_tells_the_same(script):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"!\[(.*?)\]\(docs/images/dialogue\.svg\)", readme)
    wrong = 0
    for turn, answer in zip(script.chosen().rounds, answers(FIGURE.read_text()), strict=True):
        right = answer == turn.question.answer
        wrong += not right
        said = f"{turn.question.text} {answer}" + ("" if right else ", which is wrong")
        assert f"{said}.".lower() in told.lower()
    assert wrong == 1
    assert "one answer of five wrong" in readme.replace("\n", " ")


@pytest.mark.slow
def test_the_script_draws_what_a_run_answers(after_training, script):
    (model,) = after_training.glob("outputs/*/*/model")
    figure = after_training / "figure.svg"
    run(after_training, sys.executable, str(SCRIPT), "--model", str(model), "--out", str(figure)).ok()
    assert answers(figure.read_text()) == script.answered(script.chosen(), model)

"""Every choice of attention by name, through the commands: trained, saved whole and light, loaded, talked to."""

from pathlib import Path

import pytest
import torch
import yaml
from commands import SHORT, assert_learns, run, run_folders
from safetensors.torch import load_file

from visualchat.chat import ChatSession
from visualchat.cli.config import CONF
from visualchat.model import VisualChatProcessor
from visualchat.model.saved import load_model
from visualchat.tiny.scenes import draw, random_scene

pytestmark = pytest.mark.slow

FILES = sorted((Path(CONF) / "attention").glob("[!_]*.yaml"))
CHOICES = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Where one sweep over all choices ran, and the folder of each run."""
    folder = tmp_path_factory.mktemp("sweep")
    line = ["visualchat-train", "-m", *SHORT, "trainer.max_epochs=1", "save=both", "hydra.sweep.dir=runs"]
    run(folder, *line, f"attention={','.join(CHOICES)}").ok()
    runs = {path.name.rpartition("attention-")[2].partition("+")[0]: path for path in run_folders(folder)}
    assert runs.keys() == CHOICES.keys()
    return folder, runs


@pytest.mark.parametrize("choice", CHOICES)
def test_each_choice_trains_saves_loads_and_chats(swept, choice):
    left = swept[1][choice]
    assert_learns(left, falling=False)
    answers = []
    for saved in ("model", "light"):
        model = load_model(left / saved)
        assert model.config.attention_kind == CHOICES[choice]["kind"]
        session = ChatSession(model, VisualChatProcessor.from_pretrained(left / saved), max_new_tokens=5)
        rounds = (("What is it?", [1]), ("Sure?", []), ("Which image has a circle?", [2, 3]))
        answers.append(["".join(session.ask(text, [draw(random_scene(n)) for n in seeds])) for text, seeds in rounds])
    assert answers[0] == answers[1]


def test_a_model_that_tells_images_apart_chats_by_the_command(swept):
    folder, runs = swept
    typed = "/draw 1\nWhat is it?\n/draw 2\nWhich image has a circle?\n/quit\n"
    done = run(folder, "visualchat-chat", f"folder='{runs['unit'] / 'light'}'", "max_new_tokens=4", typed=typed).ok()
    assert "attention=unit" in done.out
    assert "Image 2 goes with your next question." in done.out


@pytest.mark.parametrize(
    ("strategy", "more"),
    [("fsdp2", []), ("zero3", ["seed=1", "attention.mixed_with=causal"])],
    ids=["fsdp2", "zero3-mixed"],
)
def test_numbered_images_train_split_over_two_ranks_as_on_one(tmp_path, strategy, more):
    """fp32, two steps: sums of ranks in another order, and AdamW divides by a root of squared gradients.

    Where two kinds of attention are mixed, one step is of each.
    """
    line = [
        *SHORT,
        "data.train.size=8",
        "data.batch_size=2",
        "trainer.max_epochs=1",
        "save=light",
        "attention=numbered",
        *more,
    ]
    split = [f"trainer/strategy={strategy}", "trainer.devices=2"]
    run(tmp_path, "visualchat-train", *line, *split, "hydra.run.dir=two").ok()
    run(tmp_path, "visualchat-train", *line, "data.batch_size=4", "hydra.run.dir=one").ok()
    alone, together = (load_file(tmp_path / name / "light" / "trained.safetensors") for name in ("one", "two"))
    assert alone["image_numbers.weight"].abs().max() > 1e-2
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_an_unknown_kind_is_refused_before_anything_is_read(tmp_path):
    done = run(tmp_path, "visualchat-train", "attention.kind=units", "model.vision.path=/nowhere")
    assert done.code != 0
    assert "unknown attention kind 'units', expected one of causal" in done.err
    assert "did you mean unit?" in done.err

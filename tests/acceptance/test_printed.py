"""What a command tells its reader to type is right: the examples of `--help`, and the remedy that an error names.

What a command prints when it has gone well is typed in test_typed.py.
"""

import re

import pytest
from commands import SHORT, bash, run
from composing import SCRIPTS, UNBUILT, composed, points
from lines import commands
from made import messages, write

from targets import check_targets

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_examples_of_the_help_compose(script, tmp_path):
    shown = re.findall(rf"^ +({script} (?:.*\\\n)*.*\S)$", run(tmp_path, script, "--help").ok().out, re.MULTILINE)
    assert shown, f"{script} --help shows no example"
    for line in shown:
        ((_, command),) = commands(line)
        for point in points(command):
            assert check_targets(composed(point)) or script in UNBUILT


def refused(folder, *words: str) -> str:
    """What a command says that does not run."""
    done = run(folder, *words)
    assert done.code not in (0, None), f"{done}\nexpected a refusal"
    assert "Traceback" not in done.err, str(done)
    return done.err


def test_a_used_folder_is_resumed_by_the_setting_that_its_refusal_names(after_training):
    (left,) = after_training.glob("outputs/*/*")
    line = ["visualchat-train", *SHORT, f"hydra.run.dir={left.relative_to(after_training)}"]
    (setting,) = set(re.findall(r"\bresume=\w+", refused(after_training, *line)))
    run(after_training, *line, setting).ok()


def test_damaged_rows_are_left_out_by_the_setting_that_the_error_names(folder):
    write(folder / "mine/rows.json", [*messages(folder / "mine"), {"messages": "none"}])
    line = ["visualchat-train", "data=own", "data/source=messages", "source.root=mine", "source.files=[rows.json]"]
    line += [*SHORT[3:], "trainer.accelerator=cpu", "trainer.max_steps=1"]
    (setting,) = set(re.findall(r"\b(?:data\.|source\.)\w+=skip", refused(folder, *line)))
    run(folder, *line, setting).ok()


@pytest.mark.parametrize(
    ("mistake", "mended"),
    [("attention=mcma", "attention={}"), ("trainer.max_epoch=1", "{}=1"), ("model.language.pth=x", "{}=x")],
)
def test_a_misspelt_word_is_mended_by_the_word_that_the_error_names(folder, mistake, mended):
    (meant,) = re.findall(r"did you mean ([\w./]+)\?", refused(folder, "visualchat-train", mistake))
    composed(["visualchat-train", mended.format(meant)])


def test_without_a_model_the_command_that_makes_one_is_named(folder):
    said = refused(folder, "visualchat-chat")
    (line,) = re.findall(r"visualchat-train\b", said)
    bash(folder, f"{line} {' '.join(SHORT)} trainer.max_epochs=1").ok()
    run(folder, "visualchat-chat", typed="/quit\n").ok()

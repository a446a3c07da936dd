"""Saved evaluations compared: by which metrics, under which conditions, and what is said of tests that do not apply."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from visualchat.cli.comparing import compare
from visualchat.evaluation.metrics import METRICS, RIGHT_OR_WRONG
from visualchat.evaluation.predictions import Prediction, to_line

TRUE = "a red square and a blue circle"
SAID = ("a red square and a blue circle", "a red square", "green", "a blue circle and a red square")


def predictions(*answers: str, **changes) -> list[Prediction]:
    """Two rounds a dialogue."""
    plain = Prediction(
        column="tuned",
        mode="teacher_forced",
        part="p",
        dialogue="d",
        round=1,
        kind="",
        question="What?",
        shown=(),
        images=1,
        sent=1,
        distance=0,
        references=(TRUE,),
        options=(),
        about=(),
        tags={},
        answer="",
        ended="stop",
        exact=False,
    )
    return [
        replace(plain, dialogue=f"d{n // 2}", round=n % 2 + 1, answer=answer, exact=answer == TRUE, **changes)
        for n, answer in enumerate(answers)
    ]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Saves predictions as an evaluation's folder."""
    monkeypatch.chdir(tmp_path)

    def save(name, *of):
        folder = Path(name)
        folder.mkdir()
        (folder / "predictions.jsonl").write_text("".join(to_line(p) for some in of for p in some))
        (folder / "evaluation.json").write_text(json.dumps({"title": name}))
        (folder / "metrics.json").write_text("{}")
        return folder

    return save


def compared(capsys, folders, metrics, run) -> str:
    run.mkdir(exist_ok=True)
    compare(folders, metrics, run)
    return capsys.readouterr().out


def test_mcnemars_test_is_left_out_of_what_is_more_or_less_right(saved, capsys, monkeypatch):
    monkeypatch.setattr("visualchat.cli.comparing.console", Console(width=200))
    one, two, three = (saved(name, predictions(*SAID[n:], *SAID[:n])) for n, name in enumerate(("one", "two", "three")))
    said = compared(capsys, [one, two, three], ["rouge_l", "accuracy", "groups_right"], Path("run"))
    rows = {
        (metric, folder): cells
        for line in said.splitlines()
        if (cells := [cell.strip() for cell in line.split("│")[1:-1]]) and ", " in cells[0]
        for metric, folder in [cells[0].split(", ")]
    }
    assert len(rows) == 4
    for folder in (two, three):
        assert rows["rouge_l", str(folder)][-2:] == ["-", "-"]
        assert " to " in rows["rouge_l", str(folder)][4]
        assert all(0 < float(chance) <= 1 for chance in rows["accuracy", str(folder)][-2:])
    assert "McNemar's test is of answers that are right or wrong, not of rouge_l" in said
    assert "left out, because it is of all answers together: groups_right" in said
    page = Path("run/comparison-1.html").read_text()
    assert "McNemar" not in page
    assert re.findall(r"<h2>(.*?)</h2>", page) == [f"{one} scores higher: 2", f"{two} scores higher: 2"]
    compare([one, two], [], Path("run"))
    page = Path("run/comparison.html").read_text()
    assert "exact test p = 1" in page
    assert {f"only {one} right: 1", f"only {two} right: 1"} <= {*re.findall(r"<h2>(.*?)</h2>", page)}


def test_a_narrow_terminal_cuts_nothing(saved, capsys, monkeypatch):
    monkeypatch.setattr("visualchat.cli.comparing.console", Console(width=60))
    one, two = saved("one", predictions(*SAID)), saved("two", predictions(*SAID[1:], SAID[0]))
    said = compared(capsys, [one, two], ["reference_consistency"], Path("run"))
    assert "…" not in said
    assert "─" in said


def test_which_metrics_tell_right_from_wrong():
    choices = predictions("A", "no idea", "B", options=("cat", "dog"))
    choices = [replace(p, references=("B",), option_losses=(2.0, 1.0)) for p in choices]
    truths = [replace(p, references=("yes",)) for p in predictions("yes", "no", "perhaps")]
    words = predictions(*SAID, "image 3")
    for name in RIGHT_OR_WRONG:
        of = {"yes_no": truths, "multiple_choice": choices, "option_likelihood": choices}.get(name, words)
        assert {score.value for score in METRICS[name](of)} <= {0.0, 1.0}
    people = [replace(p, references=(TRUE, *["green"] * 2, *["x"] * 7)) for p in words]
    lists = [replace(p, references=("red, blue",), answer="red") for p in words]
    near = [replace(p, references=(f"{p.answer} and {n} lines",)) for n, p in enumerate(words)]
    for name in METRICS.keys() - RIGHT_OR_WRONG:
        of = {"vqa_accuracy": people, "list_f1": lists}.get(name, near)
        assert {score.value for score in METRICS[name](of)} - {0.0, 1.0}, name


def test_answers_given_under_other_conditions_are_not_compared(saved, capsys):
    forced = predictions(*SAID)
    free = [replace(p, mode="free_running") for p in predictions(*SAID)]
    blind = [replace(p, column="blind") for p in forced]
    both, alone = saved("both", forced, free, blind), saved("alone", free)
    assert "free, in %" in " ".join(compared(capsys, [both, alone], [], Path("run")).split())
    with pytest.raises(ValueError, match=r"under the same conditions are compared: .*other has tuned, blind; .* free"):
        compare([saved("other", forced, blind), alone], [], Path("run"))


def test_mistakes_are_named(saved):
    one, two = saved("one", predictions(*SAID)), saved("two", predictions(*SAID, part="q"))
    odd = saved("odd", predictions(*SAID, references=("something else",)))
    for folders, metrics, told in [
        ([one], [], "name two or more, or one without brackets"),
        ([one, two], [], "two has no question of the first evaluation"),
        ([one, odd], [], "odd: the true answer to p, d0, round 1 is another one there: the data were changed"),
        ([one, one], ["bleu_4"], r"evaluation.metrics=\[bleu_4\] is not of single answers"),
        ([one, one], ["rouge"], "unknown metric rouge in evaluation.metrics"),
        ([one, Path("gone")], [], "gone: no evaluation has ended there"),
    ]:
        with pytest.raises(ValueError, match=told):
            compare(folders, metrics, Path())

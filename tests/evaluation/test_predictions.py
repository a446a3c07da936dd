"""A prediction survives its line of JSON; what the data say of a question; damaged lines are named."""

import json
import re
from dataclasses import replace

import pytest
from PIL import Image

from visualchat.dialogue import Caption, Dialogue, Expected, Turn
from visualchat.evaluation.predictions import Prediction, from_line, questions, read_predictions, to_line
from visualchat.tiny import TinyDialogues

ONE = Prediction(
    column="tuned",
    mode="teacher_forced",
    part="seen",
    dialogue="d\n1",
    round=2,
    kind="count",
    question="How many “shapes”?",
    shown=("images/a.png",),
    images=2,
    sent=2,
    distance=None,
    references=("two", "2"),
    options=(),
    about=(2,),
    tags={"category": "é"},
    answer="three\n",
    ended="stop",
    exact=False,
    tokens=3,
    right=2,
    loss=0.1 + 0.2,
    option_losses=(1e-300, 2.5),
)


def test_a_prediction_survives_its_line(tmp_path):
    free = replace(ONE, mode="free_running", tokens=None, right=None, loss=None, distance=0)
    path = tmp_path / "predictions.jsonl"
    path.write_text(to_line(ONE) + to_line(free), encoding="utf-8")
    assert read_predictions(path) == [ONE, free]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"round": "2"}, "round must be int, found '2'"),
        ({"round": True}, "round must be int, found True"),
        ({"mode": "forced"}, "mode must be one of teacher_forced, free_running, found 'forced'"),
        ({"references": "two"}, r"references must be tuple\[str, ...\], found 'two'"),
        ({"score": 1}, "expected a prediction with column, .*; found .*score"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, change, complaint):
    path = tmp_path / "predictions.jsonl"
    path.write_text(to_line(ONE) + json.dumps({**json.loads(to_line(ONE)), **change}) + "\n")
    with pytest.raises(ValueError, match=rf"predictions.jsonl, line 2: {complaint}"):
        read_predictions(path)
    with pytest.raises(ValueError, match="here cannot be read"):
        from_line(to_line(ONE)[:-9], "here")


def test_a_loss_that_is_not_a_number_is_not_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_line(replace(ONE, loss=float("nan")))


def test_what_the_data_say_of_a_question():
    image = Image.new("RGB", (2, 2))
    about = Expected(references=("1",), about=(1, 3), tags={"a": "b"})
    dialogue = Dialogue(
        (
            Turn.ask("None yet?", answer="no"),
            Turn.ask("Now?", [image, Caption("a cat")], "yes", kind="k"),
            Turn.ask("Again?", answer="yes"),
            Turn(("Is", image, "it?"), "one", expected=about),
        ),
        id="d",
    )
    found = questions(dialogue)
    assert [q["distance"] for q in found] == [None, 0, 1, 2]
    assert [q["question"] for q in found] == ["None yet?", "a cat Now?", "Again?", "Is  it?"]
    assert [q["references"] for q in found] == [("no",), ("yes",), ("yes",), ("one", "1")]
    assert {q["images"] for q in found} == {3}
    assert [q["sent"] for q in found] == [0, 2, 2, 3]
    assert found[3]["tags"] == {"a": "b"}


def test_words_tell_which_images_a_question_is_about_where_the_data_do_not():
    image = b"x"
    turns = [
        Turn((image, image, "Is the second picture like photo one?"), "no"),
        Turn(("And image 2, or image 12?",), "no"),
        Turn((image, "Is image #3 like it?"), "no", expected=Expected(about=(1,))),
        Turn(("Are they alike?",), "no"),
    ]
    found = questions(Dialogue(tuple(turns), "d"))
    assert [q["about"] for q in found] == [(1, 2), (2,), (1,), ()]
    assert [q["distance"] for q in found] == [0, 1, 2, 1]
    tiny = [q for dialogue in TinyDialogues("validation", 30, captions=True) for q in questions(dialogue)]
    told = [q for q in tiny if q["about"]]
    assert len(told) > len(tiny) / 2
    assert all(set(q["about"]) >= {int(n) for n in re.findall(r"image (\d)", q["question"])} for q in told)

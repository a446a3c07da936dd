"""Files of answers by any program: what is read, and each mistake named with its file and line."""

import json

import pytest

from visualchat.dialogue import Dialogue, Turn
from visualchat.evaluation.answer_files import Conversations, as_predictions, common_questions, read_answers

ASKED = Conversations(
    "q",
    [
        Dialogue((Turn((b"x", "What?"), "A cat."), Turn(("And?",), "")), "q.jsonl:a"),
        Dialogue((Turn((b"x", b"y", "Which?"), "Image 2."),), "q.jsonl:7"),
    ],
)
A, SEVEN = "q.jsonl:a", "q.jsonl:7"


@pytest.fixture
def written(tmp_path):
    def write(*rows, head=""):
        path = tmp_path / "other.jsonl"
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_bytes((head + "\r\n".join(lines)).encode())
        return path

    return write


def row(id="a", round=1, answer="A dog.", **more):
    return {"id": id, "round": round, "answer": answer, **more}


def test_what_any_program_may_write(written):
    """Windows' line ends, a byte-order mark, empty lines, numbers as ids, whole ids, further keys."""
    path = written(row(model="x"), "", row(7, 1, ""), row("q.jsonl:a", 2, "Übel"), head="\ufeff")
    assert read_answers(path, ASKED) == {(A, 1): "A dog.", (SEVEN, 1): "", (A, 2): "Übel"}


def test_what_visualchat_generate_has_written(written):
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    messages += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "A dog."}]
    line = {"id": A, "row": "1", "model": "one", "messages": messages, "asked": [2], "ended": ["stop"], "given": [""]}
    assert read_answers(written({**line, "shown": [[], []]}), ASKED) == {(A, 2): "A dog."}
    with pytest.raises(ValueError, match="line 1: not a line that visualchat-generate has written"):
        read_answers(written(line), ASKED)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([row("b")], r"line 1: q has no conversation 'b'; it has 'a', '7', \.\.\."),
        ([row(), row(round=3)], "line 2: round 3 of 'a', which has rounds 1 to 2"),
        ([row(round=0)], "line 1: round 0 of 'a'"),
        ([row(), row(round=2), row()], "line 3: round 1 of 'a' was answered in line 1 already"),
        ([{"id": "a", "text": "x"}], "line 1: expected an object with id, round and answer; found id, text"),
        (["[1]"], "line 1: expected an object with id, round and answer; found list"),
        (["{torn"], r"line 1: not JSON \("),
        ([row(round="1")], "line 1: round must be a number from 1, found '1'"),
        ([row(round=True)], "line 1: round must be a number from 1, found True"),
        ([row(answer=None)], "line 1: answer must be text, found None"),
        ([], "holds no answer"),
    ],
)
def test_mistakes_are_named(written, rows, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_answers(written(*rows), ASKED)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=f"answers={tmp_path}: there is no such file"):
        read_answers(tmp_path, ASKED)
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe4"}')
    with pytest.raises(ValueError, match=r"latin.jsonl is not UTF-8"):
        read_answers(tmp_path / "latin.jsonl", ASKED)


def test_questions_that_only_some_answer():
    files = {"one": {(A, 1): "x", (A, 2): "x"}, "two": {(A, 1): "x"}}
    with pytest.raises(
        ValueError, match=r"two lacks 1 of 2 answers that others have, the first: round 2 of 'q.jsonl:a'"
    ):
        common_questions(files, ASKED, skip=False)
    assert common_questions(files, ASKED, skip=True) == ([(A, 1)], {"two": [(A, 2)]})
    with pytest.raises(ValueError, match="no question is answered by all"):
        common_questions({"one": {(A, 1): "x"}, "two": {(SEVEN, 1): "x"}}, ASKED, skip=True)


def test_answers_as_metrics_take_them():
    answers = {(A, 1): " A cat. ", (A, 2): "x", (SEVEN, 1): "Image 3."}
    found = as_predictions("one", answers, [*answers], ASKED, {SEVEN: [["1.png", "2.png"]]})
    assert [(p.references, p.exact, p.sent, p.shown) for p in found] == [
        (("A cat.",), True, 1, ()),
        ((), False, 1, ()),
        (("Image 2.",), False, 2, ("1.png", "2.png")),
    ]

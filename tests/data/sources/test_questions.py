"""Conversations that wait for answers: where a question is open, in every form of a row; what is no conversation."""

import pytest
from corpora import shade_of

from visualchat.data.sources.questions import Questions, open_rounds


@pytest.fixture
def read(corpus):
    corpus.jpeg("pictures/a.jpg", 40)
    corpus.jpeg("pictures/b.jpg", 200)

    def make(*rows, **options):
        corpus.lines("own.jsonl", rows)
        return Questions(corpus.root, ["own.jsonl"], **options)

    return make


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


A = {"role": "user", "content": [{"type": "image", "path": "pictures/a.jpg"}, {"type": "text", "text": "What?"}]}
FORMS = [
    ({"messages": [A]}, [""]),
    ({"messages": [A, assistant("A cat."), user("Why?")]}, ["A cat.", ""]),
    ({"messages": [{"role": "system", "content": "Be brief."}, A, user("Why?"), user("So?")]}, ["", "", ""]),
    ({"messages": [A, user("Why?"), assistant("So."), user("And?")]}, ["", "So.", ""]),
    ({"messages": [A, assistant(None), user("Why?"), assistant(" ")]}, ["", ""]),
    ({"messages": [A, assistant([{"type": "text", "text": ""}])]}, [""]),
    ({"conversation": [A]}, [""]),
    ({"prompt": [A]}, [""]),
    ({"image": "pictures/a.jpg", "conversations": [{"from": "human", "value": "<image>What?"}]}, [""]),
    ({"images": ["pictures/a.jpg"], "texts": [{"user": "What?"}, {"user": "Why?", "assistant": "So."}]}, ["", "So."]),
]


@pytest.mark.parametrize(("row", "answers"), FORMS, ids=str)
def test_questions_are_open_where_no_answer_follows(read, row, answers):
    (dialogue,) = read(row)
    assert [turn.answer for turn in dialogue.turns] == answers
    assert [shade_of(image) for image in dialogue.images] == pytest.approx([40], abs=3)
    assert dialogue.turns[0].images, "the image is where it was sent"
    assert all(turn.answer == "" for turn in open_rounds(dialogue, every_round=True).turns)
    assert open_rounds(dialogue) == dialogue


BAD = [
    ([assistant("Hello.")], "message 1: expected role 'user', found 'assistant'"),
    ([A, assistant("a"), assistant("b")], "message 3: expected role 'user', found 'assistant'"),
    ([A, {"role": "tool", "content": "x"}], "message 2: expected role 'user' or 'assistant', found 'tool'"),
    ([{"role": "system", "content": "Be brief."}], "empty question: no message of a user"),
    ([], "empty question: no message of a user"),
    ([user(" ")], "empty question: content is ' '"),
    ([A, assistant("A cat.")], "no open question: all of 1 questions have an answer; rounds=all asks again"),
    ([user([{"type": "image", "path": "pictures/c.jpg"}, {"type": "text", "text": "What?"}])], "missing image file"),
    ([user("\ud800")], "round 1 is not valid text"),
]


@pytest.mark.parametrize(
    ("messages", "complaint"), BAD, ids=lambda value: str(value).encode("ascii", "replace").decode()
)
def test_what_cannot_be_asked_is_named_by_file_and_line(read, messages, complaint):
    source = read({"messages": [A]}, {"messages": messages, "id": "odd"}, on_error="skip")
    assert len(source) == 1
    (error,) = source.errors
    assert error.row == "own.jsonl, line 2 (id odd)"
    assert complaint in str(error)
    with pytest.raises(ValueError, match="1 of 2 rows are damaged"):
        len(read({"messages": [A]}, {"messages": messages}))


def test_answered_rows_are_asked_again_if_wanted(read):
    (dialogue,) = read({"messages": [A, assistant("A cat.")]}, every_round=True)
    assert dialogue.turns[0].answer == "A cat."

"""What the chat says to commands that are mistyped, and that neither an interruption nor a full memory ends it."""

import pytest
import torch
from test_chat import Echo, run

from visualchat.chat import ChatSession
from visualchat.cli.chat import HELP


@pytest.mark.parametrize("line", ["/help", "/"])
def test_help_shows_the_help(line):
    screen, session = run(line)
    assert screen.count(HELP) == 2
    assert session.asked == []


def test_an_unknown_command_is_named_with_the_one_that_may_be_meant():
    screen, session = run("/imgae a.png", "/xyzzy", "/Undo")
    assert "\nunknown command /imgae; did you mean /image?\n/help lists all\n" in screen
    assert "\nunknown command /xyzzy\n/help lists all\n" in screen
    assert "\nunknown command /Undo; did you mean /undo?\n/help lists all\n" in screen
    assert (screen.count(HELP), session.asked) == (1, [])


@pytest.mark.parametrize(
    "line",
    [
        "/image",
        "/image  ",
        "/draw x",
        "/draw -1",
        "/reset now",
        "/save",
        "/undo 2",
        "/edit",
        "/edit x",
        "/edit 1 ",
        "/load",
    ],
)
def test_a_command_with_other_arguments_is_told_what_it_expects(line):
    screen, session = run(line)
    (told,) = (told for told in HELP.splitlines() if told.split()[0] == line.split()[0])
    assert f"\nexpected {told.strip()}\n" in screen
    assert (screen.count(HELP), session.asked) == (1, [])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyboardInterrupt(), "Interrupted; the conversation is as before."),
        (torch.OutOfMemoryError("CUDA out of memory."), "CUDA out of memory."),
    ],
    ids=["Ctrl-C", "memory"],
)
def test_what_ends_a_command_does_not_end_the_chat(error, told):
    class Failing(Echo):
        def ask(self, question, images=()):
            if question == "fail":
                raise error
            return super().ask(question, images)

    screen, session = run("/draw 3", "fail", "And now?", session=Failing())
    assert f"you> fail\n{told}\nyou> And now?\nIt is a cat.\n" in screen
    (asked,) = session.asked
    assert (asked[0], len(asked[1])) == ("And now?", 1)


def test_bytes_that_are_no_text_are_told_and_nothing_is_sent(model, processor):
    session = ChatSession(model, processor, max_new_tokens=2)
    screen, _ = run("h\udcffi", "And now?", session=session)
    assert "the text is not valid: '\\udcff' at character" in screen
    assert [turn.question for turn in session.turns] == ["And now?"]

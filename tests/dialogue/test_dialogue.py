"""What a conversation may be, and what it refuses."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from PIL import Image

from visualchat.dialogue import Caption, Dialogue, Turn
from visualchat.dialogue.template import Template, TextSegment, render

CAT, DOG = Path("cat.png"), b"encoded dog"


def test_ask_puts_images_before_the_question():
    assert Turn.ask("Which is the dog?", [CAT, DOG], "The second.", "which") == Turn(
        (CAT, DOG, "Which is the dog?"), "The second.", "which"
    )


def test_a_turn_tells_its_images_from_its_words():
    picture = Image.new("RGB", (2, 2))
    turn = Turn(("Is ", CAT, "older than ", Caption("a dog"), picture, DOG, "?"))
    assert turn.images == (CAT, picture, DOG)
    assert turn.question == "Is older than ?"


def test_images_of_a_dialogue_are_in_order_of_appearance():
    turns = (Turn((CAT, "a", DOG), "b"), Turn.ask("c", [], "d"), Turn(("e", DOG, Caption("f"), CAT)))
    assert Dialogue(turns).images == (CAT, DOG, DOG, CAT)


def test_dialogues_are_frozen():
    dialogue = Dialogue((Turn.ask("a"),))
    with pytest.raises(FrozenInstanceError):
        dialogue.id = "other"
    with pytest.raises(FrozenInstanceError):
        dialogue.turns[0].answer = "b"


def test_only_the_last_turn_may_be_open():
    assert Dialogue((Turn.ask("a", answer="b"), Turn.ask("c"))).turns[-1].answer is None
    with pytest.raises(ValueError, match=r"^row 7: turn 1 of 2 has no answer; only the last turn may be open$"):
        Dialogue((Turn.ask("a"), Turn.ask("c", answer="d")), id="row 7")


def test_an_empty_answer_is_an_answer():
    assert Dialogue((Turn.ask("a", answer=""), Turn.ask("c"))).turns[0].answer == ""


def test_a_dialogue_needs_a_turn():
    with pytest.raises(ValueError, match=r"^row 7: a dialogue needs at least one turn, found none$"):
        Dialogue((), id="row 7")


@pytest.mark.parametrize("content", [(), ("",), (" \n",), (Caption("a cat"),)])
def test_every_turn_needs_a_question_or_an_image(content):
    with pytest.raises(ValueError, match="row 7: turn 2 has no question, found "):
        Dialogue((Turn.ask("a", answer="b"), Turn(content)), id="row 7")


@pytest.mark.parametrize("answer", [None, "", " \n"])
def test_training_needs_answers(answer):
    dialogue = Dialogue((Turn.ask("a", answer="b"), Turn.ask("c", answer=answer)), id="row 7")
    with pytest.raises(ValueError, match=r"row 7: turn 2 has no answer .*a training dialogue needs one"):
        dialogue.require_answers()


def test_answered_dialogues_pass_as_they_are():
    dialogue = Dialogue((Turn.ask("a", [CAT], "b"), Turn.ask("c", answer="d")))
    assert dialogue.require_answers() is dialogue


def test_without_images_keeps_all_but_images_and_captions():
    turns = (Turn((CAT, "a", DOG, Caption("c"), "d"), "e", "kind"), Turn.ask("f", [CAT], "g"))
    blind = Dialogue(turns, "row 7", "system").without_images()
    assert blind == Dialogue((Turn(("a", "d"), "e", "kind"), Turn(("f",), "g")), "row 7", "system", blind=True)


def test_without_images_keeps_the_turn_of_an_image_alone():
    """Its answer is compared with that of the model that sees; a turn that never held anything is refused as ever."""
    blind = Dialogue((Turn((CAT,), "a cat"), Turn(("And?", DOG), "a dog"))).without_images()
    assert [turn.content for turn in blind.turns] == [("",), ("And?",)]
    for template in (Template(), Template(strip=True)):
        texts = [segment.text for segment in render(blind, "Look.", template) if isinstance(segment, TextSegment)]
        assert "".join(texts) == "Look.\n\n\n\n### Answer:\na cat### Question:\nAnd?\n\n### Answer:\na dog"
    with pytest.raises(ValueError, match="turn 1 has no question"):
        Dialogue((Turn(("",), "a cat"),))

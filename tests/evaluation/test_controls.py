"""Controls change the images alone: permuted with their numbers in words, or one of them replaced."""

import re
from pathlib import Path

import pytest
from PIL import Image

from visualchat.dialogue import Caption, Dialogue, Expected, Turn
from visualchat.evaluation.controls import CONTROLS, permute, replace_image
from visualchat.evaluation.predictions import Prediction, questions
from visualchat.evaluation.scores import changed_answers
from visualchat.tiny import TinyDialogues

A, B, C, D = b"a", b"b", b"c", b"d"


def ask(words: str, *images, answer="yes", **expected) -> Turn:
    return Turn((*images, words), answer, expected=Expected(**expected) if expected else None)


def test_images_of_a_round_change_places_with_their_numbers():
    dialogue = Dialogue(
        (
            ask("Is image 2 darker than image 3?", A, B, C, about=(2, 3), references=("yes, image 2 is",)),
            ask("And image 4 beside the first image?", D, answer="image 1 is", about=(4, 1)),
        ),
        "d",
    )
    for seed in range(20):
        changed = permute(dialogue, seed)
        assert sorted(changed.turns[0].images) == [A, B, C]
        assert all(old != new for old, new in zip((A, B, C), changed.turns[0].images, strict=True))
        at = {image: number for number, image in enumerate(changed.images, start=1)}
        assert at[D] == 4
        assert changed.turns[0].question == f"Is image {at[B]} darker than image {at[C]}?"
        assert changed.turns[0].expected == Expected(about=(at[B], at[C]), references=(f"yes, image {at[B]} is",))
        ordinal = ("first", "second", "third")[at[A] - 1]
        assert changed.turns[1].question == f"And image 4 beside the {ordinal} image?"
        assert (changed.turns[1].answer, changed.turns[1].expected.about) == (f"image {at[A]} is", (4, at[A]))
    assert permute(dialogue, 3) == permute(dialogue, 3)
    for words in ("Are both alike?", "Is any image dark, top-left?", "What colour is the red one in image one?"):
        assert permute(Dialogue((ask(words, A, B),), "d")).turns[0].question == words.replace("image one", "image two")
    assert len({permute(dialogue, seed).images for seed in range(20)}) == 2


@pytest.mark.parametrize(
    "turns",
    [
        (ask("What is it?", A),),
        (ask("What is it?", A), ask("And image 2?", B)),  # one image a round
        (ask("Is it the first?", A, B),),
        (ask("Is it darker than the other?", A, B),),
        (ask("Which one?", A, B, answer="the left"),),
        (ask("How many are in number 2?", A, B),),
        (ask("Which image?", A, B, options=("the other", "image 1")),),
        (Turn((A, "beside", B, "?"), "yes"),),  # words stand between them
    ],
)
def test_what_cannot_be_permuted_safely_is_left_out(turns):
    dialogue = Dialogue(turns, "d")
    assert permute(dialogue) is None
    assert [*CONTROLS["permuted"]([dialogue], 0)] == []


def test_in_the_tiny_world_a_number_still_means_the_same_scene():
    dialogues = [*TinyDialogues("validation", 60, captions=True)]
    by_id = {dialogue.id: dialogue for dialogue in dialogues}
    changed = CONTROLS["permuted"](dialogues, 0)
    assert 15 < len(changed) < 60
    checked = 0
    for dialogue in changed:
        scenes = [[item for t in d.turns for item in t.content if isinstance(item, Caption)]
                  for d in (by_id[dialogue.id], dialogue)]  # fmt: skip
        for before, after in zip(by_id[dialogue.id].turns, dialogue.turns, strict=True):
            numbers = [[int(n) for n in re.findall(r"image (\d)", turn.question)] for turn in (before, after)]
            meant = [[scenes[which][n - 1] for n in numbers[which]] for which in (0, 1)]
            assert meant[0] == meant[1]
            checked += numbers[0] != numbers[1]
    assert checked > 30


def test_one_image_is_replaced_by_one_of_another_dialogue():
    dialogues = [Dialogue((ask("?", A, B), ask("And?", C)), "one"), Dialogue((ask("?", D),), "two"),
                 Dialogue((ask("?"),), "none")]  # fmt: skip
    first, second = CONTROLS["replaced"](dialogues, 0)
    number = int(first.turns[0].expected.tags["replaced"])
    assert [n for n, (x, y) in enumerate(zip(dialogues[0].images, first.images, strict=True), 1) if x != y] == [number]
    assert first.images[number - 1] == D
    assert (second.id, second.images) == ("two", (A,))
    assert [*CONTROLS["replaced"](dialogues[1:], 0)] == []  # there is no other image
    assert {CONTROLS["replaced"](dialogues, seed)[0].images.index(D) for seed in range(20)} == {0, 1, 2}
    assert [d.images for d in CONTROLS["blind"](dialogues, 0)] == [(), (), ()]


def test_the_other_image_is_the_next_that_the_dialogue_lacks():
    """Whatever stands for images: files, bytes, images in memory, of which equal ones are one image."""
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    shown = [(A, B), (A,), (B, A), (red,), (red.copy(), blue), (Path("x.png"), C), (Path("x.png"),), (A,)]
    dialogues = [Dialogue((ask("?", *images),), f"d{n}") for n, images in enumerate(shown)]
    for seed in range(3):
        changed = CONTROLS["replaced"](dialogues, seed)
        assert [dialogue.id for dialogue in changed] == [dialogue.id for dialogue in dialogues]
        others = [
            next(image for n in range(len(shown)) for image in shown[(index + 1 + n) % len(shown)] if image not in of)
            for index, of in enumerate(shown)
        ]
        for dialogue, images, other in zip(changed, shown, others, strict=True):
            number = int(dialogue.turns[0].expected.tags["replaced"])
            assert [*dialogue.images] == [*images[: number - 1], other, *images[number:]]


def test_answers_about_the_replaced_image_should_change_and_others_stay():
    dialogue = Dialogue((ask("1?", A, about=(1,)), ask("2?", B, about=(2,)), ask("all?", about=(1, 2)), ask("?")), "d")

    def told(dialogue, answers):
        return [
            Prediction("tuned", "teacher_forced", "p", **facts, shown=(), answer=said, ended="stop", exact=False)
            for facts, said in zip(questions(dialogue), answers, strict=True)
        ]

    before, after = told(dialogue, "abcd"), told(replace_image(dialogue, 2, C), "aBcx")
    shares = {figure.name: (figure.value, figure.questions) for figure in changed_answers(before, after)}
    assert shares == {"changed/all": (1 / 3, 3), "changed/about_it": (0.5, 2), "changed/about_others": (0.0, 1)}
    assert changed_answers(before[3:], after[3:]) == []

"""Questions with hops: every answer against a solver that reads captions and words only; balance; mistakes.

The solver knows nothing of how questions are made.
"""

import re
from collections import Counter, defaultdict

import pytest
from captions import read_captions

from visualchat.dialogue.template import TextSegment
from visualchat.tiny import HopDialogues
from visualchat.tiny.dialogues import caption_segments
from visualchat.tiny.hops import ASK_HOPS, HOP_KINDS
from visualchat.tiny.scenes import HELD_OUT

NUMBER = 500
DATA = {
    (split, images): [HopDialogues(split, NUMBER, images=images).sketch(i) for i in range(NUMBER)]
    for split, images in ((("train"), (1, 4)), ("validation", (5, 8)), ("unseen", (1, 4)))
}
EVERY = [sketch for sketches in DATA.values() for sketch in sketches]

AGO = {"in my last question": 1, "two questions ago": 2, "three questions ago": 3}
SINGULAR = {"circles": "circle", "squares": "square", "triangles": "triangle", "stars": "star", "crosses": "cross"}


def the_only(values):
    """The single value: more than one, or none, would make the question ambiguous."""
    assert len(set(values)) == 1, values
    return values[0]


def thing_of(words, number, things):
    """What "the circle", "the red one" or "the top-left one" in an image is."""
    fits = [t for t in things if t[0] == int(number) and words.removesuffix(" one") in t[1:]]
    assert len(fits) == 1, (words, number, things)
    return fits[0]


def attribute(words, thing):
    return {"What colour": thing[1], "What shape": thing[2], "Where": thing[3]}[words]


def solve(question, captions, earlier):
    """The answer from captions and earlier questions; fails where there is not exactly one."""
    things = read_captions(captions)
    images = range(1, len(captions) + 1)

    def with_(name):
        return [number for number in images if any(t[0] == number and name in t[1:] for t in things)]

    if m := re.fullmatch(r"(What colour|What shape|Where) is the (.+) in image (\d)\?", question):
        return attribute(m[1], thing_of(m[2], m[3], things))
    if m := re.fullmatch(r"(What colour|What shape|Where) is the thing I asked about (.+)\?", question):
        referred = re.fullmatch(r"(?:What \w+|Where) is the (.+) in image (\d)\?", earlier[-AGO[m[2]]])
        return attribute(m[1], thing_of(referred[1], referred[2], things))
    if m := re.fullmatch(r"Is there a (\w+) (\w+) in image (\d)\?", question):
        assert int(m[3]) in images
        return "yes" if any((str(t[0]), *t[1:3]) == (m[3], m[1], m[2]) for t in things) else "no"
    if m := re.fullmatch(r"Which image has the (\w+) (\w+)\?", question):
        fits = [t for t in things if t[1:3] == (m[1], m[2])]
        assert len(fits) == 1
        return f"image {fits[0][0]}"
    if m := re.fullmatch(r"Is the (.+) in image (\d) the same (colour|shape) as the (.+) in image (\d)\?", question):
        assert m[2] != m[5]
        column = 1 if m[3] == "colour" else 2
        return "yes" if thing_of(m[1], m[2], things)[column] == thing_of(m[4], m[5], things)[column] else "no"
    if m := re.fullmatch(r"How many (?:(\w+) shapes|(\w+)) are in all images\?", question):
        name = m[1] or SINGULAR[m[2]]
        return str(sum(name in t[1:] for t in things))
    if m := re.fullmatch(r"Which images have a (\w+?)(?: shape)?\?", question):
        assert 0 < len(with_(m[1])) < len(captions)
        return ", ".join(f"image {number}" for number in with_(m[1]))
    if m := re.fullmatch(r"Which (colour|shape) is in every image\?", question):
        column = 1 if m[1] == "colour" else 2
        return the_only([t[column] for t in things if with_(t[column]) == [*images]])
    m = re.fullmatch(r"Which image has no (\w+?)(?: shape)?\?", question)
    return f"image {the_only([number for number in images if number not in with_(m[1])])}"


def test_every_answer_is_the_only_right_one():
    found = Counter()
    for sketch in EVERY:
        captions, earlier = [], []
        for turn in sketch.rounds:
            captions += [scene.caption for scene in turn.scenes]
            question = turn.question
            assert solve(question.text, captions, earlier) == question.answer, (sketch.id, question, captions, earlier)
            assert question.text not in earlier or question.kind.startswith("back")
            earlier.append(question.text)
            found[question.kind] += 1
    assert set(found) == set(HOP_KINDS)
    assert min(found.values()) > 0.02 * found.total()


def test_a_guess_from_the_words_is_rarely_right():
    """The most frequent answer to a kind of question about so many images: what a model gets that sees none."""
    answers = defaultdict(Counter)
    for sketch in EVERY:
        seen = 0
        for turn in sketch.rounds:
            seen += len(turn.scenes)
            asked = " ".join(turn.question.text.split()[:2]) if turn.question.kind.startswith("back") else ""
            answers[turn.question.kind, asked, seen][turn.question.answer] += 1
    guessed, asked = Counter(), Counter()
    for (kind, *_), given in answers.items():
        if given.total() < 25:  # too few for the most frequent one to mean anything
            continue
        guessed[kind] += given.most_common(1)[0][1]
        asked[kind] += given.total()
    floors = {kind: guessed[kind] / asked[kind] for kind in asked}
    assert all(0.45 < floors[kind] < 0.60 for kind in ("exists", "same")), floors
    assert all(floors[kind] < 0.48 for kind in floors if kind not in ("exists", "same")), floors
    assert sum(guessed.values()) / sum(asked.values()) < 0.42, floors


def test_noes_name_what_is_half_there_or_elsewhere():
    easy = 0
    for sketch in EVERY:
        shown = []
        for turn in sketch.rounds:
            shown += turn.scenes
            if turn.question.kind != "exists" or turn.question.answer == "yes":
                continue
            colour, shape, number = re.search(r"a (\w+) (\w+) in image (\d)", turn.question.text).groups()
            here = shown[int(number) - 1].shapes
            easy += not (
                any(s.colour == colour or s.shape == shape for s in here)
                or any(s.pair == (colour, shape) for scene in shown for s in scene.shapes)
            )
    assert easy == 0


def test_the_hop_of_each_question_is_told_to_the_evaluation():
    dialogue = HopDialogues("validation", 40, captions=True)[7]
    assert [turn.expected.tags for turn in dialogue.turns] == [
        {"hop": ASK_HOPS[turn.kind][2]} for turn in dialogue.turns
    ]


def test_held_out_compositions_stay_out_and_are_what_unseen_is_about():
    for sketch in DATA["train", (1, 4)] + DATA["validation", (5, 8)]:
        assert not {shape.pair for scene in sketch.scenes for shape in scene.shapes} & set(HELD_OUT)
        text = " ".join(turn.question.text for turn in sketch.rounds)
        assert not any(f"{colour} {shape}" in text for colour, shape in HELD_OUT)
    for sketch in DATA["unseen", (1, 4)]:
        assert all({shape.pair for shape in scene.shapes} & set(HELD_OUT) for scene in sketch.scenes)


def test_numbers_of_images_are_even_and_no_image_is_shown_twice():
    images = Counter(len(sketch.scenes) for sketch in DATA["validation", (5, 8)])
    assert set(images) == {5, 6, 7, 8}
    assert min(images.values()) > 0.8 * NUMBER / 4
    scenes = [(scene.caption, scene.look) for sketch in EVERY for scene in sketch.scenes]
    assert len(set(scenes)) == len(scenes)


def test_items_depend_on_their_arguments_only_and_are_a_data_set():
    data = HopDialogues("train", 20, seed=3)
    assert data.sketch(-1) == HopDialogues("train", 500, seed=3).sketch(19)
    assert data.sketch(4) != HopDialogues("train", 20, seed=4).sketch(4)
    assert data.digest() != HopDialogues("train", 20, seed=3, images=(2, 4)).digest()
    assert len(data) == len(list(data)) == 20
    assert [image.info["caption"] for image in data[5].images] == [scene.caption for scene in data.sketch(5).scenes]
    text = "".join(s.text for s in caption_segments(data.sketch(5)) if isinstance(s, TextSegment))
    assert all(scene.caption in text for scene in data.sketch(5).scenes)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"from 1 to 8; found \(1, 9\)"):
        HopDialogues("train", 1, images=(1, 9))
    with pytest.raises(ValueError, match="at least 2 rounds, found 1"):
        HopDialogues("train", 1, rounds=1)

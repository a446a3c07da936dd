"""Dialogues: determinism, splits, and every answer against a brute-force reading of the question.

The oracle below knows the questions' wording and the captions only, not how questions are made.
"""

import re
from collections import Counter

import pytest
from captions import read_captions

from visualchat.tiny.dialogues import SPLITS, SYSTEM, TinyDialogues, caption_segments
from visualchat.tiny.questions import KINDS
from visualchat.tiny.scenes import HELD_OUT

NUMBER = 1500
SKETCHES = {split: [TinyDialogues(split, NUMBER).sketch(i) for i in range(NUMBER)] for split in SPLITS}
EVERY = [sketch for sketches in SKETCHES.values() for sketch in sketches]


def the_only(values):
    """The single value of a list: more than one, or none, would make the question ambiguous."""
    assert len(values) == 1, values
    return values[0]


def oracle(question, captions):
    """The answer by brute force; fails where the question does not fit exactly one answer."""
    things = read_captions(captions)
    where = re.search(r" in image (\d)\?$", question) or re.search(r" are in image (\d)\?$", question)
    if where:
        assert int(where[1]) <= len(captions)
        scope = [thing for thing in things if thing[0] == int(where[1])]
    else:
        assert "in the image" not in question or len(captions) == 1
        scope = things
    if m := re.match(
        r"Is the (\w+)(?: one)? in image (\d) the same (colour|shape) as the (\w+)(?: one)? in image (\d)\?", question
    ):
        named, compared = (2, 1) if m[3] == "colour" else (1, 2)
        first = the_only([t[compared] for t in things if t[0] == int(m[2]) and t[named] == m[1]])
        second = the_only([t[compared] for t in things if t[0] == int(m[5]) and t[named] == m[4]])
        assert m[2] != m[5]
        return "yes" if first == second else "no"
    if m := re.match(r"What colour is the (\w+)", question):
        return the_only([t[1] for t in scope if t[2] == m[1]])
    if m := re.match(r"What shape is the (\w+) one", question):
        return the_only([t[2] for t in scope if t[1] == m[1]])
    if m := re.match(r"Where is the (\w+) (\w+)", question):
        return the_only([t[3] for t in scope if t[1:3] == (m[1], m[2])])
    if m := re.match(r"How many (?:(\w+) )?shapes are ", question):
        assert where or len(captions) == 1
        return str(sum(m[1] in (None, t[1]) for t in scope))
    if m := re.match(r"Is there a (\w+) (\w+)", question):
        assert where or len(captions) == 1 or question.endswith(" in any image?")
        return "yes" if any(t[1:3] == (m[1], m[2]) for t in scope) else "no"
    if m := re.match(r"Which image has the (\w+) (\w+)\?", question):
        assert len(captions) > 1
        return f"image {the_only([t[0] for t in things if t[1:3] == (m[1], m[2])])}"
    assert re.match(r"What is in (the image|image \d)\?", question), question
    assert where or len(captions) == 1
    names = [f"a {t[1]} {t[2]}" for t in scope]
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_the_only_right_one(split):
    for sketch in SKETCHES[split]:
        captions = []
        for turn in sketch.rounds:
            captions += [scene.caption for scene in turn.scenes]
            assert oracle(turn.question.text, captions) == turn.question.answer, (sketch.id, turn.question, captions)


def test_items_depend_on_split_seed_and_index_only():
    data = TinyDialogues("train", 20, seed=3)
    backwards = [data[i] for i in reversed(range(20))][::-1]
    longer = TinyDialogues("train", 500, seed=3)
    for i in range(20):
        one, other = backwards[i], longer[i]
        assert one.id == other.id == f"tiny-train-3-{i}"
        assert [t.question for t in one.turns] == [t.question for t in other.turns]
        assert [p.tobytes() for p in one.images] == [p.tobytes() for p in other.images]
    assert [t.question for t in TinyDialogues("train", 5, seed=4)[0].turns] != [t.question for t in data[0].turns]


def test_pictures_of_dialogues():
    data = TinyDialogues("validation", 50)
    for i, dialogue in enumerate(data):
        dialogue.require_answers()
        assert [picture.info["caption"] for picture in dialogue.images] == [s.caption for s in data.sketch(i).scenes]
        assert {turn.kind for turn in dialogue.turns} <= set(KINDS)


def test_it_behaves_as_a_sequence():
    data = TinyDialogues("train", 3)
    assert len(data) == len(list(data)) == 3
    assert data.sketch(-1) == data.sketch(2)
    with pytest.raises(IndexError, match="3"):
        data[3]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"'test'.*train, validation, unseen"):
        TinyDialogues("test", 3)
    with pytest.raises(ValueError, match="-1"):
        TinyDialogues("train", -1)


def test_no_two_pictures_are_alike_within_or_across_splits():
    scenes = [(scene.caption, scene.look) for sketch in EVERY for scene in sketch.scenes]
    assert len(set(scenes)) == len(scenes)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_held_out_compositions_stay_out(split):
    for sketch in SKETCHES[split]:
        assert not {shape.pair for scene in sketch.scenes for shape in scene.shapes} & set(HELD_OUT)
        text = " ".join(turn.question.text + " " + turn.question.answer for turn in sketch.rounds)
        assert not any(f"{colour} {shape}" in text for colour, shape in HELD_OUT)


def test_unseen_dialogues_are_about_held_out_compositions():
    named = 0
    for sketch in SKETCHES["unseen"]:
        assert all({shape.pair for shape in scene.shapes} & set(HELD_OUT) for scene in sketch.scenes)
        text = " ".join(turn.question.text + " " + turn.question.answer for turn in sketch.rounds)
        named += any(f"{colour} {shape}" in text for colour, shape in HELD_OUT)
    assert named > 0.5 * NUMBER  # colour, shape and count questions name half of a composition at most


def test_shares_of_images_and_kinds():
    images = Counter(len(sketch.scenes) for sketch in EVERY)
    for number, share in {1: 0.40, 2: 0.40, 3: 0.12, 4: 0.08}.items():
        assert images[number] / len(EVERY) == pytest.approx(share, abs=0.03)
    several = [sketch for sketch in EVERY if len(sketch.scenes) > 1]
    between = sum(any(turn.scenes for turn in sketch.rounds[1:]) for sketch in several) / len(several)
    assert between == pytest.approx(0.3, abs=0.04)
    assert {len(sketch.rounds) for sketch in EVERY} == {1, 2, 3, 4, 5, 6}
    kinds = Counter(turn.question.kind for sketch in EVERY for turn in sketch.rounds)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) / sum(kinds.values()) > 0.05


def test_yes_and_no_are_about_even_and_half_of_the_noes_are_hard():
    exists = [
        (turn.question, [s for r in sketch.rounds[: n + 1] for s in r.scenes])
        for sketch in SKETCHES["train"]
        for n, turn in enumerate(sketch.rounds)
        if turn.question.kind == "exists"
    ]
    noes = [(question, scenes) for question, scenes in exists if question.answer == "no"]
    assert len(noes) / len(exists) == pytest.approx(0.5, abs=0.06)
    hard = 0
    for question, scenes in noes:
        colour, shape = re.match(r"Is there a (\w+) (\w+)", question.text).groups()
        number = re.search(r"in image (\d)\?", question.text)
        here = scenes[int(number[1]) - 1].shapes if number else [s for scene in scenes for s in scene.shapes]
        hard += any(s.pair == (colour, shape) for scene in scenes for s in scene.shapes)
        hard += any(s.colour == colour or s.shape == shape for s in here) and not any(
            s.pair == (colour, shape) for scene in scenes for s in scene.shapes
        )
    assert hard / len(noes) > 0.5
    same = Counter(t.question.answer for s in EVERY for t in s.rounds if t.question.kind == "same")
    assert same["yes"] / same.total() > 0.38


def test_captions_stand_where_images_would():
    sketch = next(s for s in SKETCHES["train"] if len(s.scenes) == 2)
    text = "".join(segment.text for segment in caption_segments(sketch))
    assert text.startswith(f"{SYSTEM}\n\n### Image 1:\n{sketch.scenes[0].caption}\n")
    assert f"### Image 2:\n{sketch.scenes[1].caption}\n\n### Question:\n" in text


def test_shuffled_numbers_point_at_the_same_pictures():
    """A foreign picture stands between the dialogue's own; words that name later ones count one up."""
    plain, shuffled = (TinyDialogues("train", 200, shuffled=share) for share in (0.0, 1.0))
    changed = [(a, b) for a, b in zip(plain, shuffled, strict=True) if len(a.images) != len(b.images)]
    assert len(changed) > 10
    for before, after in changed:
        own, now = ([image.tobytes() for image in dialogue.images] for dialogue in (before, after))
        place = next(n for n, (old, new) in enumerate(zip([*own, b""], now, strict=True)) if old != new)
        assert place >= 1
        assert now[:place] + now[place + 1 :] == own
        assert [turn.answer is None for turn in after.turns] == [turn.answer is None for turn in before.turns]
    kept = [(a, b) for a, b in zip(plain, shuffled, strict=True) if len(a.images) == len(b.images)]
    assert all(a == b for a, b in kept if len(a.images) < 2)


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1, found 2"):
        TinyDialogues("train", 1, shuffled=2)


def test_joined_dialogues_are_those_of_one_image_numbered_through():
    """Each question is answered by its own image, which it names by its number in the whole."""
    data = TinyDialogues("train", 300, seed=2, images=(1, 1), joined=3)
    lengths = Counter()
    for index in range(len(data)):
        sketch = data.sketch(index)
        number = 0
        for turn in sketch.rounds:
            number += len(turn.scenes)
            named = re.search(r"image (\d)", turn.question.text)
            assert named is None or int(named[1]) == number
            alone = turn.question.text.replace(f"image {number}", "image 1")
            assert oracle(alone, [sketch.scenes[number - 1].caption]) == turn.question.answer
            assert {image for image, _ in turn.question.about} <= {number}
        assert number == len(sketch.scenes)
        lengths[number] += 1
        assert data[index].id == " + ".join(f"tiny-train-2-{3 * index + n}" for n in range(number))
    assert min(lengths[n] for n in (1, 2, 3)) > 70
    pictures = [scene.look for index in range(len(data)) for scene in data.sketch(index).scenes]
    assert len(set(pictures)) == len(pictures)


def test_dialogues_have_as_many_images_as_asked_for():
    assert {len(TinyDialogues("train", 60, images=(1, 1)).sketch(i).scenes) for i in range(60)} == {1}
    assert {len(TinyDialogues("train", 60, images=(2, 3)).sketch(i).scenes) for i in range(60)} == {2, 3}
    with pytest.raises(ValueError, match=r"from 1 to 4; found \[1, 5\]"):
        TinyDialogues("train", 1, images=[1, 5])
    with pytest.raises(ValueError, match=r"joined 2, images \[1, 4\]: .* type data\.train\.images=\[1,1\]"):
        TinyDialogues("train", 1, joined=2)

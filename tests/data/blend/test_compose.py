"""Joining, the LLaVA-Otter blend and shuffled numbers: which rows, in which order, and none lost."""

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from visualchat.data.blend.compose import (
    ComposedDialogues,
    InsertionRecipe,
    Join,
    LlavaOtter,
    LlavaOtterRecipe,
    ShuffledNumbers,
    concatenate,
    group,
)
from visualchat.data.sources.rows import Entry
from visualchat.dialogue import Dialogue, Turn
from visualchat.dialogue.image_references import insert_image, renumber


@dataclass
class Fake:
    """Dialogues in memory as a source."""

    name: str
    dialogues: list[Dialogue]

    def __len__(self):
        return len(self.dialogues)

    def __getitem__(self, index):
        return self.dialogues[index]

    @property
    def entries(self):
        return [
            Entry(d.id, d.id, tuple(f"{d.id}.{t}" for t in range(len(d.turns))), tuple(map(str, d.images)), (n,))
            for n, d in enumerate(self.dialogues)
        ]


def about(id, image, rounds=1):
    first = Turn((Path(image), f"{id}: what?"), f"{id}: this.")
    return Dialogue((first, *(Turn((f"{id}: and {n}?",), f"{id}: {n}.") for n in range(1, rounds))), id)


def pair(id, one, two, rounds=2):
    first = Turn((Path(one), Path(two), f"{id}: differ?"), f"{id}: yes.")
    return Dialogue((first, *(Turn((f"{id}: how {n}?",), f"{id}: so {n}.") for n in range(1, rounds))), id)


def plan(part, *sources, seed=0, splits=None):
    corpora = {source.name: source for source in sources}
    entries = {name: source.entries for name, source in corpora.items()}
    splits = splits or {name: list(range(len(source))) for name, source in corpora.items()}
    recipes = part.recipes(entries, splits, random.Random(seed))
    return recipes, ComposedDialogues(corpora, recipes)


@pytest.mark.parametrize(("low", "high"), [(1, 3), (1, 2), (2, 2), (1, 1)])
def test_joining_loses_no_row_and_repeats_none(low, high):
    source = Fake("llava", [about(f"d{n}", f"{n}.jpg") for n in range(100)])
    for seed in range(5):
        recipes, made = plan(Join("llava", low, high), source, seed=seed)
        used = Counter(place for recipe in recipes for _, place in recipe.source_rows)
        assert used == dict.fromkeys(range(100), 1)
        sizes = Counter(len(recipe.source_rows) for recipe in recipes)
        assert set(sizes) <= set(range(1 if sum(sizes.values()) > 1 else low, high + 1))
        assert all(size >= low for size in [len(recipe.source_rows) for recipe in recipes[:-1]])
        assert sum(len(dialogue.turns) for dialogue in made) == 100
        assert sum(len(dialogue.images) for dialogue in made) == 100


def test_rows_alone_keep_their_order_and_their_names():
    source = Fake("cgd", [pair(f"p{n}", "a", "b") for n in range(5)])
    assert list(plan(Join("cgd"), source)[1]) == source.dialogues


def test_groups_depend_on_the_seed_and_are_mixed():
    first = group(60, 1, 3, random.Random(1))
    assert first == group(60, 1, 3, random.Random(1)) != group(60, 1, 3, random.Random(2))
    assert Counter(map(len, first)).keys() == {1, 2, 3}
    assert sorted(n for numbers in first for n in numbers) == list(range(60))
    assert group(0, 1, 3, random.Random(1)) == []


@pytest.mark.parametrize(("low", "high"), [(0, 3), (3, 1)])
def test_sizes_that_are_none(low, high):
    with pytest.raises(ValueError, match=f"expected 1 <= low <= high rows to join, found {low} and {high}"):
        Join("llava", low, high)


def test_joined_rows_stand_whole_after_each_other():
    one, two = about("a", "1.jpg", 2), about("b", "2.jpg")
    joined = concatenate([one, two], "a + b")
    assert joined == Dialogue((*one.turns, *two.turns), "a + b")
    assert joined.images == (Path("1.jpg"), Path("2.jpg"))


SINGLE = Fake("llava", [about("l1", "1.jpg"), about("l2", "2.jpg"), about("l1b", "1.jpg"), about("l9", "9.jpg")])
DIAL = Fake("llava_dial", [about("d1", "1.jpg", 3), about("d2", "2.jpg", 2)])


def blend(pairs, seed=0, splits=None):
    return plan(LlavaOtter(["llava", "llava_dial"], "cgd"), SINGLE, DIAL, Fake("cgd", pairs), seed=seed, splits=splits)


@pytest.mark.parametrize("seed", range(30))
def test_a_blend_talks_about_each_image_then_about_all(seed):
    recipes, made = blend([pair("p", "1.jpg", "2.jpg", 3)], seed)
    (recipe,), (dialogue,) = recipes, made
    assert dialogue.images == (Path("1.jpg"), Path("2.jpg"))
    speakers = [turn.question.partition(":")[0] for turn in dialogue.turns]
    kinds = ["p" if s == "p" else ("1" if "1" in s else "2") for s in speakers]
    assert kinds == sorted(kinds)  # image 1, then image 2, then the pair
    assert kinds[0] == "1"
    assert kinds[-1] == "p"
    for turn, kind in zip(dialogue.turns, kinds, strict=True):
        asked_before = dialogue.turns.index(turn)
        first = kind not in kinds[:asked_before]
        expected = {"1": (Path("1.jpg"),), "2": (Path("2.jpg"),), "p": () if "2" in kinds else (Path("2.jpg"),)}[kind]
        assert turn.images == (expected if first else ())
    assert len(set(recipe.source_rows)) == len(recipe.source_rows)
    for name, place in recipe.source_rows[:-1]:  # every drawn dialogue is there with all of its rounds
        drawn = {"llava": SINGLE, "llava_dial": DIAL}[name][place]
        assert [t.question for t in drawn.turns] == [
            t.question for t in dialogue.turns if t.question.startswith(f"{drawn.id}:")
        ]


def test_blends_differ_by_seed_in_every_respect():
    shapes = {
        (len(r.about), tuple(len(a) for a in r.about), r.rounds)
        for seed in range(60)
        for r in blend([pair("p", "1.jpg", "2.jpg", 3)], seed)[0]
    }
    assert {shape[0] for shape in shapes} == {1, 2}
    assert {shape[1][0] for shape in shapes} == {1, 2, 3}
    assert {len(shape[2]) for shape in shapes} == {1, 2, 3}
    assert (2, 0) in {shape[2] for shape in shapes}


def test_only_the_last_image_may_be_without_a_dialogue():
    pairs = [pair("a", "1.jpg", "7.jpg"), pair("b", "7.jpg", "1.jpg"), pair("c", "9.jpg", "1.jpg")]
    recipes, made = blend(pairs)
    assert [recipe.id for recipe in recipes] == ["blend of a", "blend of c"]
    assert made[0].images == (Path("1.jpg"), Path("7.jpg"))


def test_a_blend_draws_from_its_side_only():
    splits = {"llava": [1, 3], "llava_dial": [0], "cgd": [0, 2]}
    pairs = [pair("a", "1.jpg", "2.jpg"), pair("b", "1.jpg", "2.jpg"), pair("c", "9.jpg", "2.jpg")]
    recipes, _ = blend(pairs, splits=splits)
    assert [recipe.id for recipe in recipes] == ["blend of a", "blend of c"]
    for recipe in recipes:
        assert all(place in splits[name] for name, place in recipe.source_rows)


def test_an_image_twice_in_a_pair_is_shown_twice():
    _, (dialogue,) = blend([pair("p", "1.jpg", "1.jpg")])
    assert dialogue.images == (Path("1.jpg"), Path("1.jpg"))


def test_sources_that_share_no_image_are_an_error():
    with pytest.raises(ValueError, match=r"cgd and llava, llava_dial share no image.*coco_folder"):
        blend([pair("p", "MIMIC-IT/CGD:1", "MIMIC-IT/CGD:2")])
    assert blend([])[0] == []


def two_images(question, answer):
    return Dialogue((Turn((Path("1"), Path("2"), question), answer), Turn(("Is it so?",), "Yes.")), "p")


def test_shuffled_numbers_move_images_and_words():
    changed = insert_image(two_images("Is the first image darker than the second image?", "Image 2 is."), Path("x"), 1)
    assert changed.turns[0].content == (
        *(Path("1"), Path("x"), Path("2")),
        "Is the first image darker than the third image?",
    )
    assert changed.turns[0].answer == "Image 3 is."
    assert changed.turns[1] == Turn(("Is it so?",), "Yes.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The second picture and image two", "The third picture and image three"),
        ("Second image, photo #2, picture 1", "Third image, photo #3, picture 1"),
        ("A dog.", "A dog."),
        ("the tenth image", None),
        ("Both images", None),
        ("the second one", None),
        ("the two images", None),
        ("the other picture", None),
        ("3 dogs", None),
        ("the last image", None),
        ("on the left", None),
        ("Do they differ?", None),
        ("What do these have in common?", None),
        ("Which of the pictures is older?", None),
        ("Is there a dog in any image?", None),
        ("Is image 2 the same as image 1?", "Is image 3 the same as image 1?"),
    ],
)
def test_words_are_rewritten_or_left_alone(text, expected):
    assert renumber(text, lambda old: old + (old > 1)) == expected


@pytest.mark.parametrize(
    "dialogue",
    [
        two_images("Are both images dark?", "Yes."),
        two_images("Is it dark?", "The second one."),
        Dialogue((Turn((Path("1"), "Is it dark?"), "Yes."),), "p"),
    ],
)
def test_an_unclear_dialogue_is_left_alone(dialogue):
    assert insert_image(dialogue, Path("x"), 1) is None


def test_shuffled_numbers_as_a_composition():
    clear = Dialogue((Turn((Path("1.jpg"), Path("2.jpg"), "Is image 2 dark?"), "Yes."),), "clear")
    vague = Dialogue((Turn((Path("1.jpg"), Path("2.jpg"), "Do both differ?"), "Yes."),), "vague")
    part = ShuffledNumbers(Join("cgd"), "llava", share=1.0)
    recipes, made = plan(part, SINGLE, Fake("cgd", [clear, vague]), seed=3)
    assert all(isinstance(recipe, InsertionRecipe) for recipe in recipes)
    assert made[1] == vague
    assert len(made[0].images) == 3
    assert made[0].images[0] == Path("1.jpg")
    assert made[0].images[1] == Path("9.jpg")  # never an image that the dialogue shows itself
    assert made[0].turns[0].question == "Is image 3 dark?"
    none, _ = plan(ShuffledNumbers(Join("cgd"), "llava", share=0.0), SINGLE, Fake("cgd", [clear]))
    assert not any(isinstance(recipe, InsertionRecipe) for recipe in none)


def test_a_composed_sequence_slices():
    made = plan(Join("llava"), SINGLE)[1]
    assert made[1:3] == [SINGLE[1], SINGLE[2]]
    assert made[-1] == SINGLE[3]
    assert isinstance(blend([pair("p", "1.jpg", "2.jpg")])[0][0], LlavaOtterRecipe)

"""References to images: verdicts on dialogues whose faults are known, and blends with and without wrong numbers."""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from visualchat.data.blend.compose import ComposedDialogues, Join, LlavaOtter, ShuffledNumbers
from visualchat.data.inspection.references import looked_at, references_of, summed
from visualchat.data.sources.rows import Entry
from visualchat.dialogue import Caption, Dialogue, Turn
from visualchat.tiny import TinyDialogues

A, B, C, D = (Path(f"{name}.jpg") for name in "abcd")


def said(*turns: Turn) -> list[tuple[str, str]]:
    """The mentions of a dialogue with their verdicts."""
    return [(r.mention.words, r.verdict) for r in references_of(Dialogue(turns, "d"))]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([Turn((A, "What is in image 1?"), "Image 2 is dark.")], [("image 1", "sound"), ("Image 2", "missing")]),
        (
            [Turn((A, "What?"), "Unlike image 2, it is dark."), Turn((B, "And image 2?"), "Images 1 and 2 differ.")],
            [("image 2", "early"), ("image 2", "sound"), ("Images 1 and 2", "sound")],
        ),
        ([Turn((A, "What?"), "Both images are dark.")], [("Both images", "missing")]),
        ([Turn((A, B, "What?"), "Both images are dark.")], [("Both images", "sound")]),
        ([Turn((A, B, C, "What?"), "Both images are dark.")], [("Both images", "unclear")]),
        ([Turn((A, "What?"), "x"), Turn((B, C, "What?"), "Both images are.")], [("Both images", "sound")]),
        ([Turn((A, "What?"), "The image is."), Turn((B, "?"), "The image is.")], [("The image", "sound")] * 2),
        ([Turn((A, B, "What?"), "The image is dark.")], [("The image", "unclear")]),
        ([Turn((A, B, "What?"), "The other image is.")], [("The other image", "sound")]),
        ([Turn((A, "What?"), "The other image is.")], [("The other image", "missing")]),
        ([Turn(("What is in the image?",), "No.")], [("the image", "missing")]),
        ([Turn((A, "What does it say?"), 'It says "Image 7".')], [("Image 7", "quoted")]),
        ([Turn((A, "What?"), "Image 0 is dark.")], [("Image 0", "missing")]),
        ([Turn((Caption("a cat"), "What?"), "Image 1 is.")], [("Image 1", "sound")]),
    ],
)
def test_verdicts(turns, expected):
    assert said(*turns) == expected


def test_how_far_back_a_reference_reaches():
    dialogue = Dialogue((Turn((A, "?"), "x"), Turn((B, "?"), "x"), Turn(("?",), "Image 1 is like the second image.")))
    assert [(r.back, r.images, r.shown) for r in references_of(dialogue)] == [(2, (1,), 2), (1, (2,), 2)]


@dataclass
class Rows:
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
            Entry(d.id, d.id, tuple(str(t) for t in range(len(d.turns))), tuple(i.stem for i in d.images), (n,))
            for n, d in enumerate(self.dialogues)
        ]


def single(image: Path) -> Dialogue:
    return Dialogue((Turn((image, f"What is {image.stem}?"), f"The image shows {image.stem}."),), image.stem)


def pair(one: Path, two: Path) -> Dialogue:
    words = f"The first image shows {one.stem}, image 2 shows {two.stem}."
    return Dialogue((Turn((one, two, "What is in image 1?"), words),), one.stem + two.stem)


SINGLES = Rows("single", [single(image) for image in (A, B, C, D)])
PAIRS = Rows("pairs", [pair(A, B), pair(C, D), pair(B, C)])


def composed(part) -> ComposedDialogues:
    corpora = {rows.name: rows for rows in (SINGLES, PAIRS)}
    entries = {name: rows.entries for name, rows in corpora.items()}
    split = {name: [*range(len(rows))] for name, rows in corpora.items()}
    return ComposedDialogues(corpora, part.recipes(entries, split, random.Random(1)))


def totals(dialogues):
    return summed(looked_at(dialogues, 0))


def test_joined_rows_that_count_their_own_images_are_wrong():
    """Image 1 of the second row is no longer the dialogue's first: it exists and was shown, but is another."""
    one, three = totals(composed(Join("pairs"))), totals(composed(Join("pairs", 3, 3)))
    assert one.verdicts == {"sound": 9}
    assert three.verdicts == {"sound": 3, "wrong": 6}
    assert (three.unsound, three.unsound_share) == (1, 6 / 9)
    assert three.rounds == {1: {"references": 3, "unsound": 0}, **{n: {"references": 3, "unsound": 3} for n in (2, 3)}}


def test_joined_rows_that_speak_of_the_image_stay_sound():
    """The newest image is the one that is meant; no round needs an earlier one."""
    joined = totals(composed(Join("single", 2, 2)))
    assert joined.verdicts == {"sound": 4}
    assert (joined.named, joined.images, joined.linked, joined.several) == (4, 4, 0, 2)


def test_the_blend_of_both_links_its_rounds():
    blend = totals(composed(LlavaOtter(["single"], "pairs")))
    assert (blend.verdicts["wrong"], blend.verdicts["early"], blend.verdicts["missing"]) == (0, 0, 0)
    assert blend.linked == blend.several == blend.dialogues == 3


class Numbered:
    """Shuffled as it goes wrong: an image is inserted, and the words stay as they are."""

    def __init__(self, dialogues: ComposedDialogues) -> None:
        self.dialogues = dialogues

    def __len__(self):
        return len(self.dialogues)

    def __getitem__(self, index):
        first, *others = self.dialogues[index].turns
        one, *rest = first.content
        unrelated = next(image for image in (A, B, C, D) if image not in first.images)
        return replace(self.dialogues[index], turns=(replace(first, content=(one, unrelated, *rest)), *others))

    def place(self, index):
        return self.dialogues.place(index)

    def rows_in(self, index):
        row = self.dialogues[index].images
        donor = next(n for n, image in enumerate((A, B, C, D)) if image not in row)
        return (*self.dialogues.rows_in(index), (SINGLES, donor))


def test_shuffled_numbers_come_out_worse():
    """Ours rewrites every number: what gets worse is that nobody speaks of the new image; else numbers are wrong."""
    plain = totals(composed(Join("pairs")))
    ours = totals(composed(ShuffledNumbers(Join("pairs"), "single", share=1.0)))
    naive = totals(Numbered(composed(Join("pairs"))))
    assert plain.unsound_share == ours.unsound_share == 0
    assert naive.verdicts == {"sound": 6, "wrong": 3}, "image 1 is where it was, image 2 is not"
    assert plain.named / plain.images == 1
    assert ours.named / ours.images == 2 / 3


def test_the_tiny_world_is_sound_whatever_is_inserted():
    for dialogues in (TinyDialogues("train", 60), TinyDialogues("train", 60, shuffled=1.0)):
        found = totals(dialogues)
        assert found.verdicts.total() == found.verdicts["sound"] > 60
        assert found.bad == 0

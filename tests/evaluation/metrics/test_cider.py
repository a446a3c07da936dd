"""CIDEr-D beside the figures of pycocoevalcap 1.2 for the same words, and beside its tokenizer's words."""

import pytest
from answers import answered, values

from visualchat.evaluation.metrics import METRICS
from visualchat.evaluation.metrics.cider import words_of

CAPTIONS = [
    answered(
        "a man riding a wave on top of a surfboard",
        "a man rides a wave on a surfboard",
        "a surfer riding a wave in the ocean",
        "man on a surfboard riding a big wave",
    ),
    answered(
        "a red bus on the street", "a double decker bus driving down a street", "a red bus is parked on the street"
    ),
    answered("a cat", "a cat is sleeping on a red couch", "a cat on a couch"),
    answered(
        "two dogs play with a ball in the grass while a man and a woman look at them from far away",
        "two dogs play with a ball in the grass",
        "dogs and a ball",
    ),
    answered("a a a a a", "a plate of food on a table", "a table with food"),
]


def test_it_is_pycocoevalcaps_figure():
    each = values(METRICS["cider_d"](CAPTIONS))
    assert each == pytest.approx([2.440656654334, 2.804231557527, 2.124165486097, 0.422493871267, 0.0], abs=1e-11)
    assert sum(each) / 5 == pytest.approx(1.5583095138452032, abs=1e-11)


def test_the_only_reference_itself_has_ten_and_other_words_nothing():
    pairs = [("a red bus parked here today", "a red bus parked here today"), ("x y", "the cat sat on a mat")]
    assert values(METRICS["cider_d"]([answered(*pair) for pair in pairs])) == pytest.approx([10, 0])
    assert values(METRICS["cider_d"]([answered("", "a b"), answered("a b", "c d")])) == [0, 0]


def test_one_caption_cannot_be_weighed():
    with pytest.raises(ValueError, match="needs at least 2 captions, found 1"):
        METRICS["cider_d"](CAPTIONS[:1])


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man's bike, and it isn't red.", "a man 's bike and it is n't red"),
        ("Two black-and-white dogs; one's barking!", "two black-and-white dogs one 's barking"),
        ("It's 10:30 on the clock... they\u2019ve left", "it 's 10:30 on the clock they 've left"),
        ("A 3/4 full glass - half-empty?", "a 3/4 full glass half-empty"),
        ("I'd say there're 1,000 birds", "i 'd say there 're 1,000 birds"),
        ("women's 4x4 #1 100% caf\u00e9", "women 's 4x4 # 1 100 % caf\u00e9"),
    ],
)
def test_words_are_those_of_the_published_tokenizer(caption, words):
    assert words_of(caption) == words.split()

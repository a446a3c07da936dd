"""VQA accuracy beside the published evaluation's figures for the same answers; ANLS by its definition."""

import pytest
from answers import answered, values

from visualchat.evaluation.metrics import METRICS


@pytest.mark.parametrize(
    ("answer", "people", "worth"),
    [
        ("yes", {"yes": 10}, 1),
        ("no", {"yes": 8, "no": 2}, 0.6),
        ("no", {"yes": 9, "no": 1}, 0.3),
        ("no", {"yes": 7, "no": 3}, 0.9),
        ("no", {"yes": 6, "no": 4}, 1),
        ("Two.", {"2": 6, "two": 3, "3": 1}, 1),  # numbers up to ten are digits
        ("the Dont walk", {"don't walk": 4, "walk": 6}, 1),  # no articles, apostrophes put in
        ("1,000", {"1000": 2, "1,000": 8}, 1),
        ("blue/green", {"blue green": 3, "green": 7}, 0.9),
        ("hot-dog", {"hot dog": 9, "hot-dog": 1}, 1),
        ("10.5 ft.", {"10.5 ft": 5, "10 ft": 5}, 1),
        ("yes", {"Yes": 10}, 0),  # published answers are taken as they stand
        ("somebody'd", {"somebodyd": 5, "no": 5}, 1),
        ("", {"yes": 10}, 0),
    ],
)
def test_vqa_accuracy_is_the_published_one(answer, people, worth):
    said = [text for text, count in people.items() for _ in range(count)]
    assert values(METRICS["vqa_accuracy"]([answered(answer, *said)])) == pytest.approx([worth])


def test_a_single_reference_is_right_or_wrong():
    assert values(METRICS["vqa_accuracy"]([answered("The cat", "cat"), answered("dog", "cat")])) == [1, 0]


@pytest.mark.parametrize(
    ("answer", "references", "likeness"),
    [
        ("Hello  World", ["hello world"], 1),
        ("helo world", ["hello world"], 1 - 1 / 11),
        ("helo world", ["bye", "hello world"], 1 - 1 / 11),  # the nearest counts
        ("ab", ["ax"], 0.5),  # half of it is right: still counted
        ("abc", ["axy"], 0),  # less than half
        ("", ["a"], 0),
    ],
)
def test_anls(answer, references, likeness):
    assert values(METRICS["anls"]([answered(answer, *references)])) == pytest.approx([likeness])

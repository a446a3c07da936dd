"""Reading a choice: everything that surely names one option, and nothing else."""

import pytest
from answers import answered, values

from visualchat.evaluation.metrics import METRICS
from visualchat.evaluation.metrics.choice import option_of, yes_or_no

OPTIONS = ("a cat", "a dog", "the second image", "None of the above")

READ = {
    "B": 1, "b": 1, "(B)": 1, "B.": 1, "B)": 1, "**B**": 1, "[C]": 2, " D\n": 3, "B:": 1, "Answer: B": 1, "Option B": 1,
    "The answer is B.": 1, "The correct answer is (C).": 2, "The best choice is: D": 3, "answer = a": 0,
    "B. a dog": 1, "(B) A dog.": 1, "B: a dog": 1, "B - a dog": 1, "A cat": 0, "a dog.": 1, "The second image": 2,
    "none of the above": 3, "The answer is a dog.": 1, "Answer: the second image": 2,
}  # fmt: skip
NOT_READ = (
    "", " ", "E", "Z.", "A or B", "A, B", "A and B", "AB", "I think it is B", "B because it barks", "a bird",
    "A dog and a cat", "B. a cat", "A. a dog", "not B", "B?A", "The answer is", "answer", "1", "neither",
    "both a cat and a dog", "?",
)  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_what_names_one_option_is_read(text):
    assert option_of(text, OPTIONS) == READ[text]


@pytest.mark.parametrize("text", NOT_READ)
def test_what_does_not_is_never_guessed(text):
    assert option_of(text, OPTIONS) is None


def test_options_that_are_letters_or_the_same_words():
    assert option_of("A", ("B", "A")) == 0  # the question asks for the letter
    assert option_of("red", ("red", "Red.", "blue")) is None
    assert option_of("B", ("red", "Red.", "blue")) == 1
    assert option_of("2", ("1", "2", "3")) == 1
    assert option_of("b. flat", ("a. flat", "e. flat", "b. flat")) == 2


def test_a_choice_is_right_wrong_or_counted_as_unread():
    told = [answered(text, "B", options=OPTIONS) for text in ("B", "a dog", "A", "woof", "A or B")]
    scores = METRICS["multiple_choice"](told)
    assert values(scores) == [1, 1, 0, 0, 0]
    assert [score.parsed for score in scores] == ["B", "B", "A", None, None]
    with pytest.raises(ValueError, match=r"all, d, round 1: the true answer 'E' is none of its 4 options"):
        METRICS["multiple_choice"]([answered("B", "E", options=OPTIONS)])


def test_the_likeliest_option_is_chosen_and_equal_ones_share_the_point():
    def losses(*nats):
        return answered("", "B", options=OPTIONS[:3], option_losses=nats)

    assert values(METRICS["option_likelihood"]([losses(2, 1, 3), losses(1, 2, 3), losses(1, 1, 3)])) == [1, 0, 0.5]
    with pytest.raises(ValueError, match=r"3 options, but 0 of their losses.*evaluation.option_likelihood=true"):
        METRICS["option_likelihood"]([losses()])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yes", "yes"), ("Yes.", "yes"), ("Yes, there is a dog.", "yes"), ("**No**", "no"), ("no dog is there", "no"),
        ("True", "yes"), ("FALSE.", "no"), ("'Yes'", "yes"), ("", None), ("Not at all", None), ("Nothing", None),
        ("There is no dog", None), ("yes or no", None), ("Yes/No", None), ("true and false", None), ("yesterday", None),
        ("Yes, no", None), ("No, yes", None),
    ],
)  # fmt: skip
def test_yes_and_no(text, said):
    assert yes_or_no(text) == said


def test_yes_no_accuracy():
    scores = METRICS["yes_no"]([answered(text, "True") for text in ("yes", "true", "no", "perhaps")])
    assert values(scores) == [1, 1, 0, 0]
    assert [score.parsed for score in scores] == ["yes", "yes", "no", None]
    with pytest.raises(ValueError, match="'red' is neither yes nor no"):
        METRICS["yes_no"]([answered("yes", "red")])


def test_short_answers_and_accuracy_by_the_form_of_the_question():
    short = [answered(text, "A 3D scene", "scene") for text in ("a 3d  scene.", "Scene", "the scene", "", "a")]
    assert values(METRICS["short_answer"](short)) == [1, 1, 0, 0, 0]
    assert values(METRICS["short_answer"]([answered("", "A"), answered("(a)", "A"), answered("an", "A")])) == [0, 1, 0]
    mixed = [*short[:2], answered("b", "B", options=OPTIONS), answered("b", "no"), answered("No, none.", "no")]
    scores = METRICS["accuracy"](mixed)
    assert values(scores) == [1, 1, 1, 0, 1]
    assert [score.parsed for score in scores] == ["a 3d scene", "scene", "B", None, "no"]

"""Statistics beside values that are known, and beside what they promise: intervals that hold the truth as often."""

import numpy as np
import pytest

from visualchat.evaluation.statistics import holm, mcnemar, mean_interval, paired_difference


def test_the_interval_of_independent_answers_is_that_of_the_normal_distribution():
    values = [1.0] * 300 + [0.0] * 700
    low, high = mean_interval(values, range(1000))
    width = 1.959964 * (0.3 * 0.7 / 1000) ** 0.5
    assert (low, high) == (pytest.approx(0.3 - width, abs=0.003), pytest.approx(0.3 + width, abs=0.003))
    assert mean_interval(values, range(1000)) == (low, high) != mean_interval(values, range(1000), seed=1)


def test_answers_that_hang_together_make_it_wider():
    values = [float(dialogue % 2) for dialogue in range(100) for _ in range(10)]
    alone = mean_interval(values, range(1000))
    together = mean_interval(values, [dialogue for dialogue in range(100) for _ in range(10)])
    assert (together[1] - together[0]) / (alone[1] - alone[0]) == pytest.approx(10**0.5, rel=0.1)


def test_it_holds_the_truth_as_often_as_it_says():
    """Dialogues of unequal length, each with its own luck: the truth is 0.5 by symmetry."""
    generator, held = np.random.default_rng(0), 0
    for trial in range(200):
        luck, lengths = generator.beta(2, 2, 60), generator.integers(1, 8, 60)
        clusters = np.repeat(np.arange(60), lengths)
        values = generator.random(len(clusters)) < luck[clusters]
        low, high = mean_interval(values.astype(float).tolist(), clusters.tolist(), resamples=400, seed=trial)
        held += low <= 0.5 <= high
    assert 180 <= held <= 198  # 190 expected, standard deviation 3


def test_edges_of_an_interval():
    assert mean_interval([1.0, 1.0], ["a", "b"]) == (1.0, 1.0)
    assert mean_interval([1.0, 0.0], ["a", "a"]) is None
    for values, clusters in (([], []), ([1.0], ["a", "b"])):
        with pytest.raises(ValueError, match="a cluster for each of at least one value"):
            mean_interval(values, clusters)


def test_a_difference_on_equal_questions_is_surer_than_of_two_sets():
    generator = np.random.default_rng(0)
    first = (generator.random(500) < 0.6).astype(float)
    second = np.where(generator.random(500) < 0.1, 0.0, first)
    difference, (low, high) = paired_difference(first.tolist(), second.tolist(), range(500))
    assert difference == pytest.approx(first.mean() - second.mean())
    assert low > 0
    apart = mean_interval(first.tolist(), range(500))
    assert high - low < (apart[1] - apart[0]) / 1.3
    with pytest.raises(ValueError, match="only equal questions can be compared, found 1 answers and 2"):
        paired_difference([1.0], [1.0, 0.0], ["a"])


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1), (5, 5, 1), (0, 5, 0.0625), (1, 9, 22 / 1024), (9, 1, 22 / 1024), (3, 12, 0.03515625)],
)
def test_mcnemar_is_the_binomial_test(only_first, only_second, p):
    first = [True] * only_first + [False] * only_second + [True, False]
    second = [False] * only_first + [True] * only_second + [True, False]
    assert mcnemar(first, second) == pytest.approx(p)


def test_mcnemar_of_many_answers():
    first = [True] * 1400 + [False] * 1600
    assert mcnemar(first, [not right for right in first]) == pytest.approx(0.000278, rel=0.02)  # z = 199 / sqrt(3000)
    with pytest.raises(ValueError, match="zip"):
        mcnemar([True], [])


def test_holm_of_holms_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []

"""How sure a figure is, and a difference of two: bootstrap over dialogues, McNemar's exact test, Holm's correction.

Answers of one dialogue are not independent, so whole dialogues are drawn. Two models are compared on the same
questions. All is exact or drawn by a seed, so that figures computed again are the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

_DRAWN_AT_ONCE = 5_000_000
"""Numbers that one round of drawing holds."""


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The interval of a mean: percentiles of the means of as many dialogues drawn again, with replacement.

    None for a single dialogue, which tells nothing of others.

    Args:
        values: One an answer.
        clusters: Of each answer what it is drawn together with: its dialogue.
        level: The share of the drawn means that lie in the interval.
        resamples: How often the dialogues are drawn.
        seed: Of the drawing.

    Raises:
        ValueError: There is no answer, or not a cluster for each.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(f"expected a cluster for each of at least one value, found {len(clusters)} and {len(values)}")
    sums, sizes = _by_cluster(values, clusters)
    if len(sums) == 1:
        return None
    means = np.sort(_drawn_means(sums, sizes, resamples, np.random.default_rng(seed)))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _by_cluster(
    values: Sequence[float] | NDArray[np.float64], clusters: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(clusters,) the sum of each one's values, and how many they are."""
    numbers: dict[Hashable, int] = {}
    places = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    sums = np.bincount(places, weights=np.asarray(values, np.float64))
    return sums.astype(np.float64), np.bincount(places).astype(np.float64)


def _drawn_means(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """(resamples,) the mean over the answers of as many clusters as there are, drawn with replacement."""
    means = np.empty(resamples)
    rows = max(1, _DRAWN_AT_ONCE // len(sums))
    for start in range(0, resamples, rows):
        drawn = generator.integers(len(sums), size=(min(rows, resamples - start), len(sums)))
        means[start : start + rows] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return means


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, tuple[float, float] | None]:
    """The mean of first minus second on the same questions, and its interval.

    Raises:
        ValueError: They are not as many; otherwise as `mean_interval`.
    """
    if len(first) != len(second):
        raise ValueError(f"only equal questions can be compared, found {len(first)} answers and {len(second)}")
    differences = [one - two for one, two in zip(first, second, strict=True)]
    interval = mean_interval(differences, clusters, level=level, resamples=resamples, seed=seed)
    return sum(differences) / len(differences), interval


def crossed_means(
    values: NDArray[np.float64], clusters: Sequence[Hashable], *, resamples: int = 4000, seed: int = 0
) -> NDArray[np.float64]:
    """(resamples,) the mean over models trained with other seeds and asked other dialogues.

    Seeds and dialogues are both drawn again, each with replacement and apart from the other (the pigeonhole bootstrap,
    Owen 2007, https://doi.org/10.1214/07-AOAS122, which errs on the side of wide intervals). With one seed only
    dialogues are drawn.

    Args:
        values: (seeds, questions) how right each answer is, or by how much two models' answers differ.
        clusters: Of each question what it is drawn together with: its dialogue.
        resamples: How often is drawn.
        seed: Of the drawing.

    Raises:
        ValueError: There is no answer, or not a cluster for each question.
    """
    if not values.size or values.shape[1] != len(clusters):
        raise ValueError(f"expected a cluster for each question, found {len(clusters)} for values {values.shape}")
    by_dialogue = [_by_cluster(row, clusters) for row in values]
    sums, sizes = np.stack([row for row, _ in by_dialogue]), by_dialogue[0][1]  # (seeds, clusters), (clusters,)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _DRAWN_AT_ONCE // len(sizes))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        dialogues = generator.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=count)
        seeds = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=count)
        means[start : start + rows] = ((dialogues @ sums.T) * seeds).sum(1) / (len(sums) * (dialogues @ sizes))
    return means


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """McNemar's exact test: how likely so uneven a split of the questions is that only one of two models got right.

    Two-sided, by the binomial distribution; answers are taken to be independent, so that for many answers a dialogue
    `paired_difference` says more.

    Args:
        first: Whether the first model's answer to each question is right.
        second: The same of the second model.

    Raises:
        ValueError: They are not as many.
    """
    only_first = sum(one and not two for one, two in zip(first, second, strict=True))
    only_second = sum(two and not one for one, two in zip(first, second, strict=True))
    count = only_first + only_second
    tail, ways = 0, 1  # whole numbers: exact whatever the count
    for right in range(min(only_first, only_second) + 1):
        tail += ways
        ways = ways * (count - right) // (right + 1)
    return min(1.0, 2 * tail / 2**count)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several comparisons, each corrected so that together they err as seldom as one (Holm 1979)."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected

"""Figures of questions that belong together: how many groups, or dialogues, are right as a whole."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from visualchat.evaluation.metrics.choice import accuracy
from visualchat.evaluation.predictions import Prediction

GROUP = "group"
"""The tag that questions of one group share, such as a question and its unanswerable twin."""


def groups_right(predictions: Sequence[Prediction]) -> float:
    """The share of groups whose questions are all answered rightly; questions without a group do not count.

    Raises:
        ValueError: No question has a group.
    """
    return _whole([p for p in predictions if p.tags.get(GROUP)], lambda p: (p.part, p.tags[GROUP]))


def rounds_right(predictions: Sequence[Prediction]) -> float:
    """The share of dialogues whose rounds are all answered rightly (VisChainBench's task completion)."""
    return _whole(predictions, lambda p: (p.part, p.dialogue))


def _whole(predictions: Sequence[Prediction], group_of: Callable[[Prediction], Hashable]) -> float:
    right: dict[Hashable, bool] = {}
    for prediction, score in zip(predictions, accuracy(predictions), strict=True):
        group = group_of(prediction)
        right[group] = right.get(group, True) and score.value == 1
    if not right:
        raise ValueError("no question belongs to a group")
    return sum(right.values()) / len(right)

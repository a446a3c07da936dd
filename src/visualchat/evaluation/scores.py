"""Predictions -> figures: of all questions, by part, kind, number of images and distance, each with its interval.

Nothing but the saved predictions is needed, so figures computed from them again are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from visualchat.evaluation.metrics import CORPUS, METRICS
from visualchat.evaluation.metrics.groups import GROUP
from visualchat.evaluation.predictions import REPLACED, Prediction, Score
from visualchat.evaluation.statistics import mean_interval

EXACT_MATCH = "exact_match"
FORCED = ("option_likelihood", "perplexity")
"""Metrics of what is measured where the true answers stand before a question."""
FREE = "free"
"""What opens the names of figures of free-running answers, and the column of a table that has them."""


@dataclass(frozen=True)
class Figure:
    """A figure of some answers.

    Attributes:
        name: As in `metrics.json`: what is measured, and of which answers.
        value: The mean, a share unless it is of a loss.
        low: Where its interval over dialogues begins; None where there is none.
        high: Where it ends.
        questions: How many answers it is of.
        unreadable: How many of them the metric could not read; they count as wrong.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    questions: int
    unreadable: int


def check_metrics(names: Iterable[str]) -> None:
    """Whether all of these are metrics.

    Raises:
        ValueError: One is not.
    """
    if unknown := [name for name in names if name not in METRICS and name not in CORPUS]:
        known = ", ".join([*METRICS, *CORPUS])
        raise ValueError(
            f"unknown metric {unknown[0]} in evaluation.metrics; exact_match is always there, beside {known}"
        )


def exact_match(predictions: Sequence[Prediction]) -> list[Score]:
    """Whether answers are the true ones token for token; always readable."""
    return [Score(float(p.exact), p.answer) for p in predictions]


def columns_of(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """The predictions of each column of the table: of each model and condition, free-running answers in their own."""
    found: dict[str, list[Prediction]] = {}
    for p in predictions:
        column = p.column if p.mode == "teacher_forced" else FREE if p.column == "tuned" else f"{FREE} {p.column}"
        found.setdefault(column, []).append(p)
    return found


def figures(predictions: Sequence[Prediction], metrics: Sequence[str], apart: Sequence[str]) -> list[Figure]:
    """The figures of one column.

    Args:
        predictions: Of one model, one mode.
        metrics: Names of `METRICS` and `CORPUS`, beside exact match.
        apart: Kinds of question left out of all figures but their own.

    Raises:
        ValueError: There is no answer of a kind that counts, or a metric cannot score these questions.
    """
    counted = [p for p in predictions if p.kind not in apart]
    for part in dict.fromkeys(p.part for p in predictions):
        if not any(p.part == part for p in counted):
            raise ValueError(f"part {part!r} of the evaluation has no answer of a kind that counts (apart: {[*apart]})")
    found = _losses(counted)
    if all(p.mode == "free_running" for p in predictions):
        metrics = [name for name in metrics if name not in FORCED]
    for name in (EXACT_MATCH, *(name for name in metrics if name in METRICS)):
        found += _scored(name, predictions, apart)
    for name in metrics:
        if name in CORPUS:
            found.append(Figure(f"{name}/all", CORPUS[name](counted), None, None, len(counted), 0))
    cut = [float(p.ended == "length") for p in counted]
    if any(cut):
        found.append(_mean("cut/all", cut, counted, 0))
    return found


def _losses(predictions: Sequence[Prediction]) -> list[Figure]:
    """Answer loss and token accuracy, together and by part, where answers are teacher-forced."""
    found = []
    for name, of in {"": predictions, **_parts(predictions)}.items():
        measured = [(p.tokens, p.right, p.loss) for p in of]
        tokens = sum(n for n, _, _ in measured if n is not None)
        if not tokens:
            continue
        loss = sum(value for _, _, value in measured if value is not None) / tokens
        right = sum(n for _, n, _ in measured if n is not None) / tokens
        for figure, value in (("answer_loss", loss), ("token_accuracy", right)):
            found.append(Figure(f"{name}{figure}/all", value, None, None, len(of), 0))
    return found


def _scored(name: str, predictions: Sequence[Prediction], apart: Sequence[str]) -> list[Figure]:
    """A metric's figures: of all, by part, kind, images, distance, image asked about, and tags."""
    metric: Callable[[Sequence[Prediction]], list[Score]] = exact_match if name == EXACT_MATCH else METRICS[name]
    scores = list(zip(predictions, metric(predictions), strict=True))
    counted = [(p, score) for p, score in scores if p.kind not in apart]
    groups: dict[str, list[tuple[Prediction, Score]]] = {f"{name}/all": counted}
    for part in _parts([p for p, _ in counted]):
        groups[f"{part}{name}/all"] = [(p, score) for p, score in counted if f"{p.part}/" == part]
    for p, score in scores:
        if p.kind:
            groups.setdefault(f"{name}/{p.kind}", []).append((p, score))
    for p, score in counted:
        distance = [] if p.distance is None else [f"distance_{p.distance}"]
        about = [f"about_{p.about[0] if len(p.about) == 1 else 'several'}"] if p.about else []
        tags = [f"{key}_{value}" for key, value in p.tags.items() if key not in (GROUP, REPLACED)]
        for group in (f"images_{p.images}", *distance, *about, *tags):
            groups.setdefault(f"{name}/{group}", []).append((p, score))
    return [
        _mean(group, [s.value for _, s in of], [p for p, _ in of], sum(s.parsed is None for _, s in of))
        for group, of in groups.items()
    ]


def changed_answers(before: Sequence[Prediction], after: Sequence[Prediction]) -> list[Figure]:
    """How often an answer changed when an image was replaced.

    Args:
        before: To the dialogues as they are.
        after: To those of the control `replaced`.

    Returns:
        Shares of all questions that tell which images they are about, of those about the replaced one and of those
        about others, `changed/all`, `changed/about_it` and `changed/about_others`; each where there are such questions.
    """
    said = {prediction.key: prediction.answer for prediction in before}
    groups: dict[str, list[tuple[Prediction, float]]] = {"all": [], "about_it": [], "about_others": []}
    for p in after:
        if p.about and p.key in said:
            group = "about_it" if int(p.tags[REPLACED]) in p.about else "about_others"
            for name in ("all", group):
                groups[name].append((p, float(p.answer != said[p.key])))
    return [
        _mean(f"changed/{name}", [share for _, share in of], [p for p, _ in of], 0) for name, of in groups.items() if of
    ]


def _mean(name: str, values: Sequence[float], of: Sequence[Prediction], unreadable: int) -> Figure:
    interval = mean_interval(values, [(p.part, p.dialogue) for p in of])
    low, high = interval or (None, None)
    return Figure(name, sum(values) / len(values), low, high, len(values), unreadable)


def _parts(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """The predictions of each part, named as the beginning of a figure's name; none where there is but one."""
    found: dict[str, list[Prediction]] = {}
    for p in predictions:
        found.setdefault(f"{p.part}/", []).append(p)
    return found if len(found) > 1 else {}


def flat(columns: Mapping[str, Sequence[Figure]]) -> dict[str, float]:
    """`metrics.json`: the values of the first column by their names, of others with the column's name before."""
    first = next(iter(columns))
    return {
        (figure.name if column == first else f"{column}/{figure.name}"): figure.value
        for column, of in columns.items()
        for figure in of
    }


def table(columns: Mapping[str, Sequence[Figure]]) -> list[dict[str, Any]]:
    """`scores.json`: every figure with its interval and what it is of."""
    return [{"column": column, **asdict(figure)} for column, of in columns.items() for figure in of]

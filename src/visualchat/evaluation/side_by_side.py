"""Models beside each other on equal questions, from answers alone: figures, paired differences and a page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from visualchat import html_page
from visualchat.evaluation.metrics import METRICS
from visualchat.evaluation.metrics.references import beyond
from visualchat.evaluation.predictions import Prediction
from visualchat.evaluation.statistics import mean_interval, paired_difference
from visualchat.generation.page import STYLE, figure

CONSISTENCY = "reference_consistency"
_MOST_LINKS = 10

Answers = Mapping[str, Sequence[Prediction]]
"""Each model's answers to the same questions, in the same order."""


@dataclass(frozen=True)
class Comparison:
    """One metric of one model, beside the first model.

    Attributes:
        metric: Its name.
        model: Whose answers.
        value: The mean.
        interval: Of the mean over conversations; None for a single one.
        questions: How many answers it is of.
        difference: To the first model; None for that itself.
        between: The interval of the difference.
    """

    metric: str
    model: str
    value: float
    interval: tuple[float, float] | None
    questions: int
    difference: float | None = None
    between: tuple[float, float] | None = None


def scores_of(answers: Answers, metric: str) -> dict[str, list[float | None]]:
    """Each model's score of each question; None where no true answer is known and the metric needs one."""
    scored: dict[str, list[float | None]] = {}
    for model, of in answers.items():
        fit = [p for p in of if p.references or metric == CONSISTENCY]
        values = iter([score.value for score in METRICS[metric](fit)] if fit else [])
        scored[model] = [next(values) if p.references or metric == CONSISTENCY else None for p in of]
    return scored


def compared(answers: Answers, metrics: Sequence[str]) -> list[Comparison]:
    """The figures of every metric and model, and their differences to the first model."""
    found: list[Comparison] = []
    for metric in metrics:
        scored = scores_of(answers, metric)
        first = next(iter(scored.values()))
        for model, scores in scored.items():
            kept = [(p.dialogue, a, b) for p, a, b in zip(answers[model], scores, first, strict=True) if a is not None]
            if not kept:
                continue
            clusters, own = [d for d, _, _ in kept], [a for _, a, _ in kept]
            value, interval = sum(own) / len(own), mean_interval(own, clusters)
            one = Comparison(metric, model, value, interval, len(own))
            if scores is not first:
                difference, between = paired_difference(own, [b for _, _, b in kept if b is not None], clusters)
                one = Comparison(metric, model, value, interval, len(own), difference, between)
            found.append(one)
    return found


def table_rows(found: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """The heads, then a row a metric and model; times 100."""
    rows: list[tuple[str, ...]] = [("x 100", "model", "answers", "mean", "95%", "against the first", "95%")]
    for one in found:
        difference = "" if one.difference is None else f"{100 * one.difference:+.1f}"
        mean = f"{100 * one.value:.1f}"
        rows.append(
            (
                one.metric,
                one.model,
                str(one.questions),
                mean,
                _between(one.interval),
                difference,
                _between(one.between, "+"),
            )
        )
    return rows


def _between(interval: tuple[float, float] | None, sign: str = "") -> str:
    return "" if interval is None else f"{100 * interval[0]:{sign}.1f} to {100 * interval[1]:{sign}.1f}"


def side_by_side_page(
    title: str, answers: Answers, found: Sequence[Comparison], metric: str, notes: Sequence[str]
) -> str:
    """The page: figures, the questions on which the models differ most, then each conversation.

    Args:
        title: Its heading.
        answers: Of all models.
        found: Their figures.
        metric: Whose scores stand beside the answers.
        notes: Sentences on the whole.
    """
    models = [*answers]
    rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in table_rows(found)]
    parts = [f"<p>{html.escape(note)}</p>" for note in notes]
    parts.append(f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>")
    scores = scores_of(answers, metric)
    first = answers[models[0]]
    spread = [_spread([scores[model][n] for model in models]) for n in range(len(first))]
    most = sorted((n for n, width in enumerate(spread) if width > 0), key=lambda n: -spread[n])[:_MOST_LINKS]
    if most:
        links = ", ".join(f'<a href="#q{n}">{html.escape(first[n].dialogue)}, round {first[n].round}</a>' for n in most)
        parts.append(f"<p>Where they differ most by {html.escape(metric)}: {links}</p>")
    for _, of in groupby(range(len(first)), key=lambda n: first[n].dialogue):
        parts.append(_conversation([*of], answers, scores))
    style = f"{STYLE}\ntd{{padding:.1rem .6rem;text-align:right}}td:nth-child(-n+2){{text-align:left}}"
    return html_page.page(title, "\n".join(parts), style)


def _spread(scores: Sequence[float | None]) -> float:
    known = [score for score in scores if score is not None]
    return max(known) - min(known) if known else 0.0


def _conversation(of: Sequence[int], answers: Answers, scores: Mapping[str, Sequence[float | None]]) -> str:
    questions = next(iter(answers.values()))
    parts = [f"<section><p class=kind>{html.escape(questions[of[0]].dialogue)}</p>"]
    for n in of:
        question = questions[n]
        before = question.sent - len(question.shown)
        images = "".join(figure(name, f"Image {k}") for k, name in enumerate(question.shown, start=before + 1))
        words = f"<span class=words>{html.escape(question.question)}</span>"
        parts.append(f"<div id=q{n}><span class=label>Question {question.round}:</span> {images}{words}</div>")
        for model, predictions in answers.items():
            parts.append(_answer(model, predictions[n], scores[model][n], question))
        if question.references:
            true = html.escape(question.references[0])
            parts.append(f"<p class=kind>true: <span class=words>{true}</span></p>")
    return "".join(parts) + "</section>"


def _answer(model: str, prediction: Prediction, score: float | None, first: Prediction) -> str:
    """A model's answer with its score, whether it is the first model's, and images that it speaks of in vain."""
    notes = [] if score is None else [f"{100 * score:.0f}"]
    if prediction is not first and prediction.answer == first.answer:
        notes.append("the same")
    if odd := beyond(prediction.answer, prediction.sent):
        notes.append(f"speaks of {', '.join(odd)}: {prediction.sent} sent")
    mark = f" <span class={'cut' if odd else 'kind'}>({html.escape('; '.join(notes))})</span>" if notes else ""
    words = f"<span class=words>{html.escape(prediction.answer)}</span>"
    return f"<p><span class=label>{html.escape(model)}:</span> {words}{mark}</p>"

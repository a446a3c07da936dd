"""From the predictions of an evaluation to its figures and pages, without a model; and two evaluations compared."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from visualchat.cli.config import PLAIN
from visualchat.evaluation.controls import REPLACED
from visualchat.evaluation.metrics import METRICS
from visualchat.evaluation.pages import ACCURACY, comparison_page, draw_accuracy, intervals, report_page, values
from visualchat.evaluation.predictions import Prediction, read_predictions
from visualchat.evaluation.report import legend, metrics_table
from visualchat.evaluation.scores import (
    EXACT_MATCH,
    changed_answers,
    check_metrics,
    columns_of,
    exact_match,
    figures,
    flat,
    table,
)
from visualchat.evaluation.statistics import holm, mcnemar, paired_difference

console = Console()

PREDICTIONS, RECORD = "predictions.jsonl", "evaluation.json"

LEFT = {
    "metrics.json": "the figures",
    "scores.json": "the figures with their intervals",
    PREDICTIONS: "every question and its answers",
    "report.html": "the report, with images",
    "samples.html": "sample dialogues with their images",
}
"""What an evaluation leaves, and what each is."""


def conclude(
    predictions: Sequence[Prediction], record: Mapping[str, Any], run: Path, images: str = ""
) -> dict[str, float]:
    """Write and print the figures of predictions.

    Args:
        predictions: All of an evaluation.
        record: Its `evaluation.json`.
        run: The folder for the figures.
        images: The folder with the images, from there on; ends in a slash if it is another one.

    Returns:
        The figures, as in `metrics.json`.
    """
    columns = columns_of(predictions)
    scored = {name: figures(of, record["metrics"], record["apart"]) for name, of in columns.items()}
    if REPLACED in columns:
        scored[REPLACED] += changed_answers(next(iter(columns.values())), columns[REPLACED])
    metrics = flat(scored)
    (run / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    (run / "scores.json").write_text(json.dumps(table(scored), indent=2) + "\n")
    draw_accuracy(scored, run / ACCURACY)
    page = report_page(record["title"], scored, columns, record["samples"], images)
    (run / "report.html").write_text(page, encoding="utf-8")
    count = len({p.key for p in predictions})
    dialogues = len({(p.part, p.dialogue) for p in predictions})
    console.print(f"\n{record['title']}: {dialogues} dialogues, {count} answers", **PLAIN)
    console.print(metrics_table(values(scored), intervals(scored)))
    console.print(legend(scored), highlight=False, soft_wrap=True)
    if unreadable := {
        f.name: f.unreadable for f in scored[next(iter(scored))] if f.unreadable and f.name.endswith("/all")
    }:
        said = ", ".join(f"{number} by {name.removesuffix('/all')}" for name, number in unreadable.items())
        console.print(f"answers that could not be read, and count as wrong: {said}", **PLAIN)
    for name, what in LEFT.items():
        if (run / name).exists():
            console.print(f"  {os.path.relpath(run / name)}  {what}", **PLAIN)
    return metrics


def require_place(run: Path, predictions: Sequence[Path] = ()) -> None:
    """Refuse to write over the figures of another evaluation.

    Args:
        run: The folder for the figures.
        predictions: The evaluations that they are of; none for the one that is to be made there.

    Raises:
        ValueError: The folder has figures of other predictions.
    """
    evaluated, scored = (run / PREDICTIONS).exists(), (run / "metrics.json").exists()
    elsewhere = run.resolve() not in [folder.resolve() for folder in predictions]
    if (evaluated and elsewhere) if predictions else (scored and not evaluated):
        raise ValueError(
            f"{os.path.relpath(run)}/ holds the figures of other predictions: name another folder with hydra.run.dir="
        )


def score_again(folder: Path, more: Sequence[str], run: Path) -> dict[str, float]:
    """The figures of saved predictions, without a model.

    Args:
        folder: Of an evaluation.
        more: Metrics beside those that it was scored by.
        run: The folder for the figures.

    Raises:
        ValueError: The folder holds no predictions, or they do not fit the metrics.
    """
    check_metrics(more)
    require_place(run, [folder])
    record, predictions = saved_evaluation(folder)
    record["metrics"] = [*dict.fromkeys([*record["metrics"], *more])]
    (run / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return conclude(predictions, record, run, f"{os.path.relpath(folder, run)}/")


def saved_evaluation(folder: Path) -> tuple[dict[str, Any], list[Prediction]]:
    """The record and the predictions of an evaluation's folder.

    Raises:
        ValueError: There is none, or it has not ended.
    """
    for name in (PREDICTIONS, RECORD, "metrics.json"):
        if not (folder / name).is_file():
            raise ValueError(
                f"predictions={folder}: no evaluation has ended there ({name} is missing); visualchat-evaluate leaves "
                "them in the folder that it names"
            )
    return json.loads((folder / RECORD).read_text(encoding="utf-8")), read_predictions(folder / PREDICTIONS)


def compare(folders: Sequence[Path], metrics: Sequence[str], run: Path) -> None:
    """Compare other evaluations with the first, question by question.

    Args:
        folders: Of the evaluations.
        metrics: What is compared: the first of them, or exact match.
        run: The folder for the pages.

    Raises:
        ValueError: There is but one, they have no question in common, or the metric is not one of single answers.
    """
    if len(folders) < 2:
        raise ValueError("predictions=[...] compares evaluations: name two or more, or one without brackets")
    require_place(run, folders)
    metric = next(iter(metrics), EXACT_MATCH)
    if metric != EXACT_MATCH and metric not in METRICS:
        raise ValueError(
            f"evaluation.metrics=[{metric}] is not of single answers, so questions cannot be compared by it"
        )
    first, *others = [next(iter(columns_of(saved_evaluation(folder)[1]).values())) for folder in folders]
    found = [_pairs(first, other, metric, folder) for other, folder in zip(others, folders[1:], strict=True)]
    chances = [mcnemar([a == 1.0 for *_, a, _ in pairs], [b == 1.0 for *_, b in pairs]) for pairs in found]
    shown = Table()
    for heading in (f"{metric} in %", str(folders[0]), "this", "difference", "95%", "McNemar", "Holm"):
        shown.add_column(heading)
    for number, (folder, pairs, chance, corrected) in enumerate(
        zip(folders[1:], found, chances, holm(chances), strict=True), start=1
    ):
        clusters = [(p.part, p.dialogue) for p, *_ in pairs]
        ones, twos = [a for *_, a, _ in pairs], [b for *_, b in pairs]
        difference, interval = paired_difference(twos, ones, clusters)
        between = "-" if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"
        means = f"{100 * sum(ones) / len(ones):.1f}", f"{100 * sum(twos) / len(twos):.1f}"
        shown.add_row(str(folder), *means, f"{100 * difference:+.1f}", between, f"{chance:.2g}", f"{corrected:.2g}")
        name = "comparison.html" if len(others) == 1 else f"comparison-{number}.html"
        said = [
            f"{len(pairs)} questions that both answer, {metric}: {means[0]} % and {means[1]} %",
            f"difference {100 * difference:+.1f} points (95%: {between}); McNemar's exact test p = {chance:.2g}",
        ]
        names = f"{folders[0]}", f"{folder}"
        page = comparison_page(" and ".join(names), said, pairs, names, f"{os.path.relpath(folders[0], run)}/")
        (run / name).write_text(page, encoding="utf-8")
        console.print(f"{folder}: {len(pairs)} of {len(first)} questions are the same as in {folders[0]}", **PLAIN)
        console.print(f"  {os.path.relpath(run / name)}  both answers to each question", **PLAIN)
    console.print(shown)


def _pairs(
    first: Sequence[Prediction], other: Sequence[Prediction], metric: str, folder: Path
) -> list[tuple[Prediction, Prediction, float, float]]:
    """Both answers to each question that both have, and their scores.

    Raises:
        ValueError: There is none, or the true answers differ.
    """
    keys = {p.key for p in first} & {p.key for p in other}
    ones, twos = ([p for p in of if p.key in keys] for of in (first, other))
    twos = [{p.key: p for p in twos}[key] for key in (p.key for p in ones)]
    if not keys:
        raise ValueError(f"{folder} has no question of the first evaluation: only equal questions can be compared")
    if odd := next((a for a, b in zip(ones, twos, strict=True) if a.references != b.references), None):
        place = f"{odd.part}, {odd.dialogue}, round {odd.round}"
        raise ValueError(f"{folder}: the true answer to {place} is another one there: the data were changed")
    score = exact_match if metric == EXACT_MATCH else METRICS[metric]
    so_far: dict[tuple[str, str], tuple[str, ...]] = {}
    seen = []
    for p in ones:
        so_far[p.part, p.dialogue] = images = (*so_far.get((p.part, p.dialogue), ()), *p.shown)
        seen.append(replace(p, shown=images))
    return [(a, b, s.value, t.value) for a, b, s, t in zip(seen, twos, score(ones), score(twos), strict=True)]

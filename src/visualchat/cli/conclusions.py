"""From the predictions of an evaluation to its figures and pages, without a model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from visualchat.cli.config import PLAIN
from visualchat.evaluation.pages import ACCURACY, draw_accuracy, intervals, report_page, values
from visualchat.evaluation.predictions import REPLACED, Prediction, read_predictions
from visualchat.evaluation.report import legend, metrics_table
from visualchat.evaluation.scores import (
    changed_answers,
    check_metrics,
    columns_of,
    figures,
    flat,
    table,
)

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

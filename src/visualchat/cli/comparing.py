"""Evaluations compared with the first of them, question by question, from their saved predictions alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from visualchat.cli.conclusions import require_place, saved_evaluation
from visualchat.cli.config import PLAIN
from visualchat.evaluation.metrics import METRICS, RIGHT_OR_WRONG
from visualchat.evaluation.pages import comparison_page
from visualchat.evaluation.predictions import Prediction
from visualchat.evaluation.scores import EXACT_MATCH, check_metrics, columns_of, exact_match
from visualchat.evaluation.statistics import holm, mcnemar, paired_difference

console = Console()

Pairs = Sequence[tuple[Prediction, Prediction, float, float]]
"""Both answers to each question that two evaluations share, and their scores."""


def compare(folders: Sequence[Path], metrics: Sequence[str], run: Path) -> None:
    """Compare other evaluations with the first.

    Args:
        folders: Of the evaluations.
        metrics: What is compared; exact match where none is named. The pages are in the order of the first one.
        run: The folder for the pages.

    Raises:
        ValueError: There is but one, they have no column or question in common, or no metric is one of single answers.
    """
    if len(folders) < 2:
        raise ValueError("predictions=[...] compares evaluations: name two or more, or one without brackets")
    check_metrics(metrics)
    require_place(run, folders)
    whole = [name for name in metrics if name not in METRICS]
    chosen = [name for name in metrics if name in METRICS] if metrics else [EXACT_MATCH]
    if not chosen:
        raise ValueError(
            f"evaluation.metrics=[{','.join(whole)}] is not of single answers, so questions cannot be compared by it"
        )
    column, (first, *others) = _common_column(folders)
    shared = [_equal_questions(first, other, folder) for other, folder in zip(others, folders[1:], strict=True)]
    shown = Table()
    for heading in (f"{column}, in %", str(folders[0]), "this", "difference", "95%", "McNemar", "Holm"):
        shown.add_column(heading, overflow="fold")
    for metric in chosen:
        found = [_scored(ones, twos, metric) for ones, twos in shared]
        lines = _add_rows(shown, metric, found, folders[1:])
        if metric == chosen[0]:
            _write_pages(found, lines, folders, run, graded=_graded(metric))
    for folder, pairs in zip(folders[1:], shared, strict=True):
        console.print(f"{folder}: {len(pairs[0])} of {len(first)} questions are the same as in {folders[0]}", **PLAIN)
    for number in range(1, len(folders)):
        console.print(f"  {os.path.relpath(run / _page_name(number, folders))}  both answers to each question", **PLAIN)
    console.print(shown)
    if whole:
        console.print(f"left out, because it is of all answers together: {', '.join(whole)}", **PLAIN)
    if graded := [metric for metric in chosen if _graded(metric)]:
        console.print(f"McNemar's test is of answers that are right or wrong, not of {', '.join(graded)}", **PLAIN)


def _graded(metric: str) -> bool:
    """Whether a metric tells how nearly an answer is right."""
    return metric != EXACT_MATCH and metric not in RIGHT_OR_WRONG


def _common_column(folders: Sequence[Path]) -> tuple[str, list[list[Prediction]]]:
    """The first column of the first evaluation that all have, and its predictions in each.

    Raises:
        ValueError: There is none.
    """
    columns: list[Mapping[str, list[Prediction]]] = [columns_of(saved_evaluation(folder)[1]) for folder in folders]
    for name in columns[0]:
        if all(name in of for of in columns):
            return name, [of[name] for of in columns]
    told = "; ".join(f"{folder} has {', '.join(of)}" for folder, of in zip(folders, columns, strict=True))
    raise ValueError(f"predictions: only answers given under the same conditions are compared: {told}")


def _equal_questions(
    first: Sequence[Prediction], other: Sequence[Prediction], folder: Path
) -> tuple[list[Prediction], list[Prediction]]:
    """The answers of both to the questions that both have, the first one's with all images shown by then.

    Raises:
        ValueError: There is none, or the true answers differ.
    """
    keys = {p.key for p in first} & {p.key for p in other}
    if not keys:
        raise ValueError(f"{folder} has no question of the first evaluation: only equal questions can be compared")
    ones = [p for p in first if p.key in keys]
    by_key = {p.key: p for p in other}
    twos = [by_key[p.key] for p in ones]
    for a, b in zip(ones, twos, strict=True):
        if a.references != b.references:
            place = f"{a.part}, {a.dialogue}, round {a.round}"
            raise ValueError(f"{folder}: the true answer to {place} is another one there: the data were changed")
    so_far: dict[tuple[str, str], tuple[str, ...]] = {}
    seen = []
    for p in ones:
        so_far[p.part, p.dialogue] = images = (*so_far.get((p.part, p.dialogue), ()), *p.shown)
        seen.append(replace(p, shown=images))
    return seen, twos


def _scored(ones: Sequence[Prediction], twos: Sequence[Prediction], metric: str) -> Pairs:
    score = exact_match if metric == EXACT_MATCH else METRICS[metric]
    return [(a, b, s.value, t.value) for a, b, s, t in zip(ones, twos, score(ones), score(twos), strict=True)]


def _add_rows(shown: Table, metric: str, found: Sequence[Pairs], folders: Sequence[Path]) -> list[list[str]]:
    """A row of the table for each of these evaluations; what its page says of it comes back."""
    chances = [("-", "-") for _ in found] if _graded(metric) else _chances(found)
    lines = []
    for folder, pairs, (chance, corrected) in zip(folders, found, chances, strict=True):
        ones, twos = [a for *_, a, _ in pairs], [b for *_, b in pairs]
        difference, interval = paired_difference(twos, ones, [(p.part, p.dialogue) for p, *_ in pairs])
        between = "-" if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"
        means = f"{100 * sum(ones) / len(ones):.1f}", f"{100 * sum(twos) / len(twos):.1f}"
        name = metric if len(folders) == 1 else f"{metric}, {folder}"
        shown.add_row(name, *means, f"{100 * difference:+.1f}", between, chance, corrected)
        test = "" if _graded(metric) else f"; McNemar's exact test p = {chance}"
        lines.append(
            [
                f"{len(pairs)} questions that both answer, {metric}: {means[0]} % and {means[1]} %",
                f"difference {100 * difference:+.1f} points (95%: {between}){test}",
            ]
        )
    return lines


def _chances(found: Sequence[Pairs]) -> list[tuple[str, str]]:
    """The p-value of McNemar's exact test of each comparison, and the same by Holm's correction, as text."""
    chances = [mcnemar([a == 1.0 for *_, a, _ in pairs], [b == 1.0 for *_, b in pairs]) for pairs in found]
    return [(f"{chance:.2g}", f"{corrected:.2g}") for chance, corrected in zip(chances, holm(chances), strict=True)]


def _page_name(number: int, folders: Sequence[Path]) -> str:
    """The file of the page that compares evaluation `number`, from 1, with the first."""
    return "comparison.html" if len(folders) == 2 else f"comparison-{number}.html"


def _write_pages(
    found: Sequence[Pairs], lines: Sequence[Sequence[str]], folders: Sequence[Path], run: Path, *, graded: bool
) -> None:
    """A page for each comparison with the first evaluation."""
    images = f"{os.path.relpath(folders[0], run)}/"
    for number, (pairs, said) in enumerate(zip(found, lines, strict=True), start=1):
        names = f"{folders[0]}", f"{folders[number]}"
        page = comparison_page(" and ".join(names), said, pairs, names, images, graded=graded)
        (run / _page_name(number, folders)).write_text(page, encoding="utf-8")

"""What a run leaves for people: a table, a figure of its curves, and a page of sample dialogues."""

from __future__ import annotations

import csv
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.table import Table

from visualchat import html_page
from visualchat.dialogue import Caption, Dialogue
from visualchat.figures import figure_in
from visualchat.images import ImageInput
from visualchat.images.decode import decode_image

LEGEND = {
    "tuned": "the trained model",
    "untrained": "the same before this training",
    "blind": "the trained model without images",
    "captions": "the untrained language model reading captions in place of images",
}
"""What the columns of a training run's table stand for, in their order."""

CONDITIONS = {
    **LEGEND,
    "free": "the trained model, its own answers before each question",
    "permuted": "the trained model, its images in another order",
    "replaced": "the trained model, one image replaced by an unrelated one",
}
"""What the columns of every table stand for."""

_TITLES = {
    "answer_loss": "answer loss, nats a token",
    "token_accuracy": "token accuracy",
    "exact_match": "exact match",
    "cut": "answers cut at the most tokens",
    "changed": "answers changed by another image",
}
_LOSSES = ("answer_loss", "perplexity")
"""Figures that are no shares."""


def metrics_table(
    columns: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None
) -> Table:
    """One row a metric and one column a model; shares in percent, a dash where a model has no figure.

    Args:
        columns: The figures of each model.
        intervals: Of some of them; they stand behind the figures.
    """
    table = Table()
    table.add_column("shares in %", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for label, *cells in table_rows(columns, intervals or {}):
        table.add_row(label, *cells)
    return table


def table_rows(
    columns: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Mapping[str, tuple[float, float]]]
) -> list[tuple[str, ...]]:
    """The rows of the table, as text."""
    metrics = sorted({metric for column in columns.values() for metric in column}, key=_order)
    return [
        (
            _label(metric),
            *(
                _cell(metric, column[metric], intervals.get(name, {}).get(metric)) if metric in column else "-"
                for name, column in columns.items()
            ),
        )
        for metric in metrics
    ]


def legend(columns: Iterable[str]) -> str:
    """One line on what the columns stand for."""
    return "; ".join(f"{name}: {CONDITIONS[name]}" for name in columns)


def _parts(metric: str) -> tuple[str, str, str]:
    """`unseen/exact_match/all` as "unseen", "exact_match", "all"; the first is empty where there is no part."""
    *before, figure, group = metric.split("/")
    return "/".join(before), figure, group


def _order(metric: str) -> tuple[int, str, int, int, str]:
    """Loss, accuracy, exact match; of each `all` first, then parts, kinds, numbers of images, distances, images."""
    part, figure, group = _parts(metric)
    first = list(_TITLES).index(figure) if figure in _TITLES else len(_TITLES)
    for place, counted in ((3, "images_"), (4, "distance_"), (5, "about_")):
        number = group.removeprefix(counted)
        if number != group and number.isdecimal():
            return first, figure, place, int(number), metric
    return first, figure, 1 if part else 0 if group == "all" else 2, 0, metric


def _label(metric: str) -> str:
    """`exact_match/images_2` as "  images 2", `unseen/exact_match/all` as "  unseen"; `all` says what is counted."""
    part, figure, group = _parts(metric)
    number = group.rpartition("_")[2]
    if group.startswith("distance_"):
        return "  the image's round" if number == "0" else f"  {number} round{'s' if number != '1' else ''} later"
    if group.startswith("about_") and (number.isdecimal() or number == "several"):
        return f"  about image {number}" if number != "several" else "  about several images"
    if group != "all":
        return f"  {group.replace('_', ' ')}"
    return f"  {part}" if part else _TITLES.get(figure, figure)


def _cell(metric: str, value: float, interval: tuple[float, float] | None = None) -> str:
    if _parts(metric)[1] in _LOSSES:
        return f"{value:.3f}"
    between = "" if interval is None else f" ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"
    return f"{100 * value:.1f}{between}"


def draw_curves(metrics_csv: Path, picture: Path, title: str) -> None:
    """Draw what the CSV logger wrote, as a PNG: loss and exact match, also by source, and learning rates.

    Raises:
        ValueError: The file holds no training loss.
    """
    with metrics_csv.open() as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []

    def series(name: str) -> tuple[list[int], list[float]]:
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        return [p[0] for p in points], [p[1] for p in points]

    def below(prefix: str) -> dict[str, tuple[list[int], list[float]]]:
        return {name.removeprefix(prefix): series(name) for name in names if name.startswith(prefix)}

    steps, losses = series("train/loss")
    if not steps:
        raise ValueError(f"{metrics_csv.name} holds no values of train/loss: nothing to draw")
    with figure_in(picture, 11, 3.4, title) as figure:
        loss, match, rate = figure.subplots(1, 3)
        loss.plot(steps, losses, color="C0", alpha=0.6, label="training")
        loss.plot(*series("validation/loss"), "o-", color="C1", label="validation")
        match.plot(*series("validation/exact_match"), "o-", color="C1", label="all")
        for number, (source, points) in enumerate(below("train/loss/").items(), start=2):
            loss.plot(*points, color=f"C{number}", linewidth=0.8, alpha=0.8, label=source)
        for number, (source, points) in enumerate(below("validation/exact_match/").items(), start=2):
            match.plot(*points, ".-", color=f"C{number}", linewidth=0.8, label=source)
        loss.set(title="loss per answer token", xlabel="step", yscale="log")
        loss.legend(fontsize="small")
        match.set(title="exact match, validation", xlabel="step", ylim=(0, 1), xlim=loss.get_xlim())
        if len(match.lines) > 1:
            match.legend(fontsize="small")
        for name, points in below("lr/").items():
            rate.plot(*points, label=name)
        rate.set(title="learning rate", xlabel="step")
        if rate.lines:
            rate.legend(fontsize="small")


STYLE = """section{border:1px solid #ddd;border-radius:8px;padding:.6rem 1rem;margin:1rem 0}p{margin:.35rem 0}
figure{display:inline-block;margin:.2rem .5rem .2rem 0;vertical-align:middle;text-align:center}
figcaption{color:#888;font-size:.85em}
img{image-rendering:pixelated;height:128px;max-width:100%;border:1px solid #ccc;display:block}
.kind{color:#888;font-size:.85em}.right{color:#176b2c}.wrong{color:#b3261e}.label{font-weight:600}"""


def samples_page(title: str, dialogues: Sequence[Dialogue], answers: Sequence[Sequence[str]]) -> str:
    """A self-contained HTML page of dialogues with the model's answers and, where these differ, the true ones.

    Images stand where they stand in the question, with their numbers; each dialogue and the page say how many answers
    are exactly the true ones.

    Args:
        title: The page's heading.
        dialogues: With true answers.
        answers: The model's, one a turn.
    """
    sections, exact = [], 0
    for dialogue, given in zip(dialogues, answers, strict=True):
        right = sum(answer == turn.answer for turn, answer in zip(dialogue.turns, given, strict=True))
        exact += right
        sections.append(_dialogue(dialogue, given, f"{right} of {len(given)} answers exact"))
    score = f"<p id=score>{exact} of {sum(map(len, answers))} answers are exactly the true ones.</p>"
    return html_page.page(title, score + "\n".join(sections), STYLE)


def _dialogue(dialogue: Dialogue, answers: Sequence[str], score: str) -> str:
    """A dialogue's section."""
    parts, number = [f"<section><p class=kind>{html.escape(dialogue.id)} <span class=score>{score}</span></p>"], 0
    for turn, answer in zip(dialogue.turns, answers, strict=True):
        asked = []
        for item in turn.content:
            number += not isinstance(item, str)
            asked.append(html.escape(item) if isinstance(item, str) else _shown(item, f"Image {number}"))
        kind = f" <span class=kind>{html.escape(turn.kind)}</span>" if turn.kind else ""
        parts.append(f"<div><span class=label>Question:</span> {''.join(asked)}{kind}</div>")
        right = answer == turn.answer
        truth = "" if right else f" <span class=kind>(true: {html.escape(turn.answer or '')})</span>"
        mark = "right" if right else "wrong"
        parts.append(f"<p><span class=label>Answer:</span> <span class={mark}>{html.escape(answer)}</span>{truth}</p>")
    return "".join(parts) + "</section>"


def _shown(item: Caption | ImageInput, label: str) -> str:
    """HTML of an image, or of the words that stand for it, with its number."""
    if isinstance(item, Caption):
        return f"<span class=caption>[{label}: <i>{html.escape(item.text)}</i>]</span> "
    source = html_page.image_source(decode_image(item))
    caption = f"<figcaption>{label}</figcaption>"
    return f'<figure><img src="{source}" alt="{label}" title="{label}">{caption}</figure>'

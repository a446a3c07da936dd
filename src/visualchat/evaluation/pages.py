"""What an evaluation shows from its saved predictions alone: a figure, a report, and two runs beside each other."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from visualchat import html_page
from visualchat.evaluation.predictions import Prediction
from visualchat.evaluation.report import CONDITIONS, legend, table_rows
from visualchat.evaluation.scores import Figure
from visualchat.figures import figure_in

STYLE = """body{max-width:64rem}section{border:1px solid #ddd;border-radius:8px;padding:.6rem 1rem;margin:1rem 0}
p,div{margin:.35rem 0}section img{max-height:160px;max-width:100%;border:1px solid #ccc}
section figure{display:inline-block;margin:.2rem .5rem .2rem 0;text-align:center}
figcaption,.kind{color:#888;font-size:.85em}.label{font-weight:600}.words{white-space:pre-wrap}
.right{color:#176b2c}.wrong{color:#b3261e}td,th{padding:.1rem .6rem;text-align:right}
td:first-child{text-align:left;white-space:pre}"""

ACCURACY = "accuracy.png"
"""The figure's file, beside the report."""

Columns = Mapping[str, Sequence[Figure]]


def values(columns: Columns) -> dict[str, dict[str, float]]:
    """Each column's figures by name."""
    return {column: {figure.name: figure.value for figure in of} for column, of in columns.items()}


def intervals(columns: Columns) -> dict[str, dict[str, tuple[float, float]]]:
    """Each column's intervals by the figure's name."""
    return {
        column: {f.name: (f.low, f.high) for f in of if f.low is not None and f.high is not None}
        for column, of in columns.items()
    }


def draw_accuracy(columns: Columns, path: Path, metric: str = "exact_match") -> None:
    """A PNG of accuracy, with intervals, by the number of images, the rounds since the image, and the image asked."""
    groups = {"images": "images of the dialogue", "distance": "rounds since the image", "about": "image asked about"}
    with figure_in(path, 12, 3.4) as figure:
        axes = figure.subplots(1, len(groups), sharey=True)
        for ax, (group, label) in zip(axes, groups.items(), strict=True):
            for number, (column, of) in enumerate(columns.items()):
                points = sorted(
                    (int(found[1]), f)
                    for f in of
                    if (found := re.fullmatch(rf"{metric}/{group}_(\d+)", f.name)) is not None
                )
                if not points:
                    continue
                places = [place + 0.06 * number for place, _ in points]
                lows = [f.value - (f.value if f.low is None else f.low) for _, f in points]
                highs = [(f.value if f.high is None else f.high) - f.value for _, f in points]
                shares = [f.value for _, f in points]
                ax.errorbar(places, shares, [lows, highs], fmt="o-", capsize=3, label=column, color=f"C{number}")
                ax.set_xticks(sorted({*ax.get_xticks().astype(int), *(place for place, _ in points)}))
            ax.set(xlabel=label, ylim=(0, 1.02))
        axes[0].set_ylabel(metric.replace("_", " "))
        if axes[0].lines:
            axes[0].legend(fontsize="small")


def report_page(
    title: str, columns: Columns, predictions: Mapping[str, Sequence[Prediction]], samples: int, folder: str = ""
) -> str:
    """The page of an evaluation: its table, its figure, and the questions of the first dialogues of each part.

    Args:
        title: Its heading.
        columns: The figures of each column.
        predictions: Those of each column, the one with the names of images' files first.
        samples: Dialogues of each part.
        folder: Where the images lie, from the page on; ends in a slash if it is another one.
    """
    head = ["<tr><th>shares in %</th>", *(f"<th>{html.escape(name)}</th>" for name in columns), "</tr>"]
    rows = [
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
        for cells in table_rows(values(columns), intervals(columns))
    ]
    known = [name for name in columns if name in CONDITIONS]
    parts = [f"<table>{''.join(head + rows)}</table><p class=kind>{html.escape(legend(known))}; in brackets the 95% "]
    parts.append("interval over dialogues</p>")
    parts.append(f'<p><img src="{ACCURACY}" alt="accuracy by images and rounds"></p>')
    first = next(iter(predictions.values()))
    chosen: dict[tuple[str, str], list[Prediction]] = {}
    for p in first:
        chosen.setdefault((p.part, p.dialogue), []).append(p)
    taken: dict[str, int] = {}
    others = {name: {p.key: p for p in of} for name, of in predictions.items()}
    for (part, _), of in chosen.items():
        taken[part] = taken.get(part, 0) + 1
        if taken[part] <= samples:
            parts.append(_dialogue(of, others, folder))
    return html_page.page(title, "\n".join(parts), STYLE)


def _dialogue(
    questions: Sequence[Prediction], by_column: Mapping[str, Mapping[tuple[str, str, int], Prediction]], folder: str
) -> str:
    """A dialogue's section: each question with the answers of all columns."""
    parts = [f"<section><p class=kind>{html.escape(questions[0].part)}: {html.escape(questions[0].dialogue)}</p>"]
    image = 0
    for question in questions:
        parts.append(_question(question, image, folder))
        image += len(question.shown)
        for name, of in by_column.items():
            if question.key in of:
                parts.append(_answer(name, of[question.key]))
    return "".join(parts) + "</section>"


def _question(question: Prediction, before: int, folder: str) -> str:
    figures = "".join(
        f'<figure><img loading=lazy src="{html.escape(folder + name, quote=True)}" alt="Image {number}">'
        f"<figcaption>Image {number}</figcaption></figure>"
        for number, name in enumerate(question.shown, start=before + 1)
    )
    kind = f" <span class=kind>{html.escape(question.kind)}</span>" if question.kind else ""
    truth = f"<p class=kind>true: <span class=words>{html.escape(question.references[0])}</span></p>"
    words = f"<span class=words>{html.escape(question.question)}</span>"
    return f"<div><span class=label>Question:</span> {figures}{words}{kind}</div>{truth}"


def _answer(name: str, prediction: Prediction) -> str:
    mark = "right" if prediction.exact else "wrong"
    cut = " <span class=kind>(cut)</span>" if prediction.ended == "length" else ""
    words = f"<span class='words {mark}'>{html.escape(prediction.answer)}</span>{cut}"
    return f"<p><span class=label>{html.escape(name)}:</span> {words}</p>"


def comparison_page(
    title: str,
    summary: Sequence[str],
    pairs: Sequence[tuple[Prediction, Prediction, float, float]],
    names: tuple[str, str],
    folder: str,
    *,
    graded: bool = False,
) -> str:
    """The page of two runs' answers to equal questions: what is said of all, then each question, differences first.

    Args:
        title: Its heading.
        summary: Lines on the whole.
        pairs: Both answers to each question, and their scores.
        names: Of the runs.
        folder: Where the first run's images lie, from the page on; ends in a slash.
        graded: Whether scores tell how nearly an answer is right, not whether it is.
    """
    groups: dict[str, list[tuple[Prediction, Prediction]]] = {}
    words = "{} scores higher" if graded else "only {} right"
    only = {1: words.format(names[0]), -1: words.format(names[1])}
    for one, other, first, second in pairs:
        same = "equal scores" if graded else {1.0: "both right", 0.0: "neither right"}.get(first, "equal scores")
        sign = (first > second) - (first < second)
        groups.setdefault(only[sign] if sign else same, []).append((one, other))
    order = [*only.values(), "neither right", "equal scores", "both right"]
    parts = [f"<p>{html.escape(line)}</p>" for line in summary]
    for group in (group for group in order if group in groups):
        parts.append(f"<h2>{html.escape(group)}: {len(groups[group])}</h2>")
        for one, other in groups[group]:
            place = f"{one.part}: {one.dialogue}, round {one.round}"
            parts.append(f"<section><p class=kind>{html.escape(place)}</p>{_question(one, 0, folder)}")
            parts.append(f"{_answer(names[0], one)}{_answer(names[1], other)}</section>")
    return html_page.page(title, "\n".join(parts), STYLE)

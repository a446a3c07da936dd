"""What a run leaves for people: a table, a picture of its curves, and a page of sample dialogues."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from visualchat.dialogue import Caption, Content, Dialogue
from visualchat.images import decode_image


def metrics_table(title: str, columns: Mapping[str, Mapping[str, float]]) -> Table:
    """One row a metric and one column a model; shares in percent, a dash where a model has no figure."""
    table = Table(title=title)
    table.add_column("exact match, %")
    for name in columns:
        table.add_column(name, justify="right")
    metrics = sorted({metric for column in columns.values() for metric in column}, key=_order)
    for metric in metrics:
        cells = [f"{100 * column[metric]:.1f}" if metric in column else "-" for column in columns.values()]
        table.add_row(_label(metric), *cells)
    return table


def _order(metric: str) -> tuple[int, int, str]:
    """`all` first, then parts, kinds, numbers of images."""
    name = metric.removeprefix("exact_match/")
    images = name.removeprefix("images_")
    if images != name and images.isdecimal():
        return 3, int(images), name
    return 0 if name == "all" else 1 if "/" in name else 2, 0, name


def _label(metric: str) -> str:
    """`exact_match/images_2` as "images 2", `unseen/exact_match/all` as "all, unseen"."""
    part, _, name = metric.rpartition("exact_match/")
    return f"{name}, {part.rstrip('/')}" if part else name.replace("_", " ")


def draw_curves(metrics_csv: Path, picture: Path, title: str) -> None:
    """Draw what the CSV logger wrote, as a PNG: loss and exact match, also by source, and learning rates.

    Raises:
        ValueError: The file holds no training loss.
    """
    from matplotlib.figure import Figure

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
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    figure.suptitle(title)
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
    figure.savefig(picture, dpi=120)


STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}
section{border:1px solid #ddd;border-radius:8px;padding:.6rem 1rem;margin:1rem
0}img{image-rendering:pixelated;width:128px; margin:.2rem .4rem .2rem 0;border:1px solid #ccc}p{margin:.35rem
0}.kind{color:#888;font-size:.85em}.right{color:#176b2c} .wrong{color:#b3261e}.label{font-weight:600}"""


def samples_page(title: str, dialogues: Sequence[Dialogue], answers: Sequence[Sequence[str]]) -> str:
    """A self-contained HTML page of dialogues: images, the model's answers and, where these differ, the true ones.

    Args:
        title: The page's heading.
        dialogues: With true answers.
        answers: The model's, one a turn.
    """
    sections = []
    for dialogue, given in zip(dialogues, answers, strict=True):
        parts, number = [f"<section><p class=kind>{html.escape(dialogue.id)}</p>"], 0
        for turn, answer in zip(dialogue.turns, given, strict=True):
            for item in turn.content:
                if isinstance(item, str):
                    continue
                number += 1
                parts.append(_shown(item, f"Image {number}"))
            kind = f" <span class=kind>{html.escape(turn.kind)}</span>" if turn.kind else ""
            parts.append(f"<p><span class=label>Question:</span> {html.escape(turn.question)}{kind}</p>")
            right = answer == turn.answer
            truth = "" if right else f" <span class=kind>(true: {html.escape(turn.answer or '')})</span>"
            mark = "right" if right else "wrong"
            parts.append(
                f"<p><span class=label>Answer:</span> <span class={mark}>{html.escape(answer)}</span>{truth}</p>"
            )
        sections.append("".join(parts) + "</section>")
    name = html.escape(title)
    return f"<!doctype html><meta charset=utf-8><title>{name}</title><style>{STYLE}</style><h1>{name}</h1>" + "\n".join(
        sections
    )


def _shown(item: Content, label: str) -> str:
    """HTML of a picture, or of the words that stand for it."""
    if isinstance(item, str | Caption):
        text = item if isinstance(item, str) else item.text
        return f"<p><span class=label>{label}:</span> <i>{html.escape(text)}</i></p>"
    buffer = io.BytesIO()
    decode_image(item).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{label}" title="{label}">'

"""A page of answered conversations, with their images and the answers of several models below one another."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from visualchat import html_page
from visualchat.generation.records import Record

STYLE = """body{max-width:64rem}section{border:1px solid #ddd;border-radius:8px;padding:.6rem 1rem;margin:1rem 0}
p,div{margin:.35rem 0}img{max-height:160px;max-width:100%;border:1px solid #ccc;image-rendering:auto}
figure{display:inline-block;margin:.2rem .5rem .2rem 0;text-align:center}figcaption,.kind{color:#888;font-size:.85em}
.label{font-weight:600}.words{white-space:pre-wrap}.cut{color:#b3261e;font-size:.85em}"""


def answers_page(title: str, conversations: Mapping[str, Mapping[str, Record]], models: Sequence[str]) -> str:
    """The page; its images lie in files beside it.

    Args:
        title: Its heading.
        conversations: The records by model of each.
        models: Their names, in the order in which the page has them.
    """
    return html_page.page(title, "\n".join(_section(by_model, models) for by_model in conversations.values()), STYLE)


def _section(by_model: Mapping[str, Record], models: Sequence[str]) -> str:
    """One conversation; where rounds before it were answered differently, each model has its own history."""
    one = next(iter(by_model.values()))
    parts = [f"<section><p class=kind>{html.escape(one.row)}</p>"]
    image = 0
    for number, (question, answer) in enumerate(one.rounds(), start=1):
        figures = []
        for name in one.shown[number - 1]:
            image += 1
            figures.append(figure(name, f"Image {image}"))
        words = html.escape(question.replace("<image>", "").strip())
        parts.append(
            f"<div><span class=label>Question:</span> {''.join(figures)}<span class=words>{words}</span></div>"
        )
        if number not in one.asked:
            parts.append(f"<p><span class=label>Given:</span> <span class=words>{html.escape(answer)}</span></p>")
            continue
        place = one.asked.index(number)
        parts += [_answer(by_model[name], name, number, place) for name in models if name in by_model]
        if one.given[place]:
            given = html.escape(one.given[place])
            parts.append(f"<p class=kind>given: <span class=words>{given}</span></p>")
    missing = [html.escape(name) for name in models if name not in by_model]
    parts += [f"<p class=cut>{name} has no answer: see skipped.jsonl</p>" for name in missing]
    return "".join(parts) + "</section>"


def figure(name: str, label: str) -> str:
    """HTML of an image that lies in a file beside the page."""
    source = html.escape(name, quote=True)
    return f'<figure><img loading=lazy src="{source}" alt="{label}"><figcaption>{label}</figcaption></figure>'


def _answer(record: Record, name: str, number: int, place: int) -> str:
    words = html.escape(record.rounds()[number - 1][1])
    cut = " <span class=cut>(cut)</span>" if record.ended[place] == "length" else ""
    label = html.escape(name)
    return f"<p><span class=label>{label}:</span> <span class=words>{words}</span>{cut}</p>"

"""What `reuse.py` found: a page in the form of a study's, and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from visualchat.figures import figure_in
from visualchat.studies.findings import ALL, Row, findings, rows
from visualchat.studies.kept import Kept
from visualchat.studies.page import claims, commits, image_counts, markdown_table, with_discussion
from visualchat.studies.plan import Claim, Plan
from visualchat.tiny.hops import ASK_HOPS

TURNED, QUARTER = "turned", "1/4 recomputed"
HOPS = {
    hop.replace("_", " "): tuple(kind for kind, (_, _, other) in ASK_HOPS.items() if other == hop)
    for _, _, hop in ASK_HOPS.values()
}
"""The kinds of question of each hop."""
TITLE = "Exact and approximate reuse of known images"
QUESTION = """\
An image that was shown before need not be computed again. What does each way of reusing it save until the first token
of an answer, and what does it cost in exact match: nothing, where images have states of their own (or stand outside the
sequence); something, where a causal model's images are computed alone and turned to their places, with none or the
first of their tokens recomputed there?"""
WAYS = """\
- *A causal model's own name*: prefix reuse. Of a new conversation a cache of prefixes holds the text before the first
  image; the encoder's features of known images are kept as well, all else is computed. Exact.
- *turned*: each image's keys and values, computed alone, are turned to their places; text alone is computed.
- *1/16, 1/4, 1/2 recomputed*: as *turned*, but so many of each image's tokens, its first ones, are computed in place
  with the text, as MPIC does ([arXiv 2502.01960](https://arxiv.org/abs/2502.01960)).
- *Kinds whose images have states of their own*: these are put in place, as chats and servers do; text alone is
  computed. Exact.
- *`cross`*: the encoder's features are kept, text is computed; gated layers read all images. Exact."""
BEYOND = """\
Answers are those of a language model of a million parameters about drawn images of a few tokens; times are those of
random models of four layers on one thread of a processor. A model of tens of layers passes more on between images, a
GPU computes many tokens at the price of few: how large either gap is there, these figures do not say, only which ways
have one. A model tuned with images kept apart may lose less by approximate reuse."""


def write_page(kept: Kept, times: Mapping[str, Any], folder: Path) -> Path:
    """Write reuse.md and reuse.png into a folder.

    Args:
        kept: The answers.
        times: As `reuse.measure` gives them.
        folder: Of results.

    Raises:
        ValueError: A way has no time.
    """
    scored = {run.arm[0] for run in kept.runs}
    if missing := scored - {*times.get("ms", {})}:
        raise ValueError(f"{', '.join(sorted(missing))}: no times are kept; name the models again, as NAME=FOLDER")
    ways = [way for way in times["ms"] if way in scored]
    plan = plan_of_ways(ways, times["exact"], sorted({run.seed for run in kept.runs}))
    table = {row.arm[0]: row for row in rows(plan, kept)}
    page = folder / "reuse.md"
    blocks = [
        f"# {TITLE}",
        "*Made by `python benchmarks/reuse.py`, all but the discussion.*",
        "## Question",
        QUESTION,
        "## Design",
        WAYS,
        _design(kept, times),
        *(["## Claims", *claims(plan, findings(plan, kept))] if plan.claims else []),
        "## Time and exact match",
        f"![{TITLE}](reuse.png)",
        *_figures(ways, table, times),
        "## Runs",
        _runs(kept),
        "## What this cannot decide",
        BEYOND,
    ]
    draw(ways, table, times, folder / "reuse.png")
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    page.write_text(with_discussion(blocks, before), encoding="utf-8")
    return page


def plan_of_ways(ways: Sequence[str], exact: Mapping[str, bool], seeds: Sequence[int]) -> Plan:
    """A study of ways, whose claims are those that the ways that there are allow."""
    tried: list[tuple[str, str, Any]] = []
    for turned in (way for way in ways if way.endswith(f", {TURNED}")):
        causal = turned.removesuffix(f", {TURNED}")
        tried += [(turned, causal, "worse"), (f"{causal}, {QUARTER}", causal, "level")]
        others = [way for way in ways if exact[way] and f"{way}, {TURNED}" not in ways]
        tried += [(way, turned, "better") for way in others]
    return Plan(
        name="reuse",
        title=TITLE,
        question=QUESTION,
        beyond=BEYOND,
        train=(),
        evaluate=(),
        factors={"way": dict.fromkeys(ways, ())},
        without=(),
        seeds=tuple(seeds),
        apart=(),
        groups=HOPS,
        claims=tuple(Claim("way", level, against, expect) for level, against, expect in tried),
    )


def _design(kept: Kept, times: Mapping[str, Any]) -> str:
    dialogues = len({(question.part, question.dialogue) for question in kept.questions})
    prompt = times["prompt"]
    return (
        f"Exact match: trained models answer the same {len(kept.questions)} questions of {dialogues} dialogues, given "
        "the true answers before, with states that are put in place. Intervals are of 95%, over dialogues and seeds "
        "drawn again.\n\n"
        f"Time: CPU time until the first token, on one thread ({times['machine']['processor']}), of random models of "
        f"the same attention: LLaMA of {times['layers']} layers of size 256, {times['images']} known images of "
        f"{times['image tokens']} tokens in a new order, {prompt['before']} tokens of text before them that are known "
        f"too, {prompt['label']} of each label and {prompt['question']} of the question. Medians of "
        f"{times['repeats']} repeats, each of which measures all ways in turn. A prefix that ends behind the images, "
        f"of the same images in the same order, leaves {times['prefix hit, ms']:.0f} ms: the question alone."
    )


def _figures(ways: Sequence[str], table: Mapping[str, Row], times: Mapping[str, Any]) -> list[str]:
    """A row a way: its time, then exact match by hop and by number of images."""
    found = table[ways[0]].cells
    groups = [ALL, *(hop for hop in HOPS if hop in found), *image_counts(found)]
    lines = [["way", "exact", "ms", *groups, "seeds"]]
    for way in ways:
        cells = [table[way].cells[group] for group in groups]
        figures = [f"{cell.value:.1f} ({(cell.high - cell.low) / 2:.1f})" for cell in cells]
        exact = "yes" if times["exact"][way] else "no"
        lines.append([way, exact, f"{times['ms'][way]['median']:.0f}", *figures, str(table[way].seeds)])
    asked = [str(table[ways[0]].cells[group].questions) for group in groups]
    lines.append(["questions", "", "", *asked, ""])
    return [
        "Exact match in percent of the questions; in brackets half the width of the interval.",
        markdown_table(lines),
    ]


def _runs(kept: Kept) -> str:
    minutes = sum(run.seconds for run in kept.runs) / 60
    return (
        f"Scored at {commits(kept)}, in {minutes:.0f} minutes in all. Every answer is "
        "kept beside this page (`reuse/answers.jsonl.xz`), the least and the most of each time in `reuse/times.json`."
    )


def draw(ways: Sequence[str], table: Mapping[str, Row], times: Mapping[str, Any], path: Path) -> None:
    """A PNG: exact match over time, of all questions, of each hop and of the dialogues with most images."""
    cells = table[ways[0]].cells
    most = [*image_counts(cells)][-1:]
    panels = [*(hop for hop in HOPS if hop in cells), *most]
    with figure_in(path, 12, 9) as figure:
        axes = figure.subplot_mosaic([[ALL] * len(panels), panels], height_ratios=(2.2, 1))
        for group, part in axes.items():
            _scatter(part, group, ways, table, times)
            part.set_title("all questions" if group == ALL else group, fontsize=9)
        axes[ALL].axvline(times["prefix hit, ms"], color="0.6", linestyle=":", linewidth=1)
        axes[ALL].annotate(
            "prefix hit", (times["prefix hit, ms"], 0.01), xycoords=("data", "axes fraction"), fontsize=8, color="0.4"
        )
        axes[ALL].set(
            xlabel=f"ms until the first token with {times['images']} known images (filled: exact reuse)",
            ylabel="exact match, %",
        )
        axes[panels[0]].set(ylabel="exact match, %")
        figure.draw_without_rendering()  # which settles where points are
        _label(axes[ALL], {way: (times["ms"][way]["median"], table[way].cells[ALL].value) for way in ways})


def _scatter(axes: Axes, group: str, ways: Sequence[str], table: Mapping[str, Row], times: Mapping[str, Any]) -> None:
    """One marker a way: a colour for each model, another marker for each of its ways."""
    models = [*dict.fromkeys(way.partition(", ")[0] for way in ways)]
    for way in ways:
        model, _, how = way.partition(", ")
        cell, time = table[way].cells[group], times["ms"][way]["median"]
        colour = f"C{models.index(model) % 10}"
        axes.errorbar(
            time,
            cell.value,
            [[cell.value - cell.low], [cell.high - cell.value]],
            fmt={"": "o", TURNED: "v"}.get(how, "s"),
            color=colour,
            markerfacecolor=colour if times["exact"][way] else "white",
            markersize=8 if group == ALL else 5,
            capsize=2,
            linewidth=1,
        )
    for model in models:  # from what costs least to what is exact
        line = sorted(
            (times["ms"][way]["median"], table[way].cells[group].value)
            for way in ways
            if way.partition(", ")[0] == model
        )
        axes.plot(*zip(*line, strict=True), color=f"C{models.index(model) % 10}", linewidth=0.8, alpha=0.5, zorder=1)
    axes.set_xscale("log")
    ticks = [tick for tick in (10, 20, 50, 100, 200, 500, 1000, 2000) if _within(tick, times)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _within(tick: float, times: Mapping[str, Any]) -> bool:
    medians = [times["prefix hit, ms"], *(of["median"] for of in times["ms"].values())]
    return min(medians) / 1.5 <= tick <= max(medians) * 1.5


PLACES = tuple(
    (side * (10 + out), up) for out in (0, 25, 60, 110) for up in (0, 12, -12, 24, -24, 38, -38) for side in (1, -1)
)
"""Where a label may stand beside its point, in typographic points, best first."""


def _label(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Name each point beside it, where no other name, point or end of the axes is."""
    renderer: Any = FigureCanvasAgg(axes.get_figure()).get_renderer()  # type: ignore[no-untyped-call]
    inside = axes.get_window_extent(renderer)
    centres = [axes.transData.transform(point) for point in points.values()]
    taken = [Bbox.from_extents(x - 9, y - 9, x + 9, y + 9) for x, y in centres]
    for name, point in sorted(points.items(), key=lambda item: item[1][1]):
        for place in PLACES:
            label = axes.annotate(
                name,
                point,
                place,
                textcoords="offset points",
                fontsize=9,
                horizontalalignment="left" if place[0] > 0 else "right",
                verticalalignment="center",
                arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6},
            )
            label.set_in_layout(False)  # or points would move once more
            label.update_positions(renderer)
            box = Text.get_window_extent(label, renderer)  # without its line
            free = box.count_overlaps(taken) == 0 and inside.x0 < box.x0 and box.x1 < inside.x1
            if free or place == PLACES[-1]:
                taken.append(box)
                break
            label.remove()

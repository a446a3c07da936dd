"""A study's figure: exact match of every arm, over all questions and over the number of images, with intervals.

Arms of one factor have a colour each. Of several factors the last one's levels have the colours, and every combination
of the others has a line of the left panel and a panel of its own on the right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visualchat.figures import figure_in
from visualchat.studies.findings import ALL, Cell, Row
from visualchat.studies.plan import Levels, Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase


def draw(plan: Plan, rows: Sequence[Row], path: Path) -> None:
    """Draw the figure into a PNG.

    Args:
        plan: Of the study.
        rows: The figures of its arms, at least one.
        path: The file.
    """
    *others, last = plan.factors
    levels = [*plan.factors[last]]
    groups: dict[Levels, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.arm[: len(others)], []).append(row)
    columns = min(3, math.ceil(math.sqrt(len(groups))))
    lines = -(-len(groups) // columns)
    height = max(3.2, 2.6 * lines, 0.33 * len(rows) + 1.2)
    images = image_counts(rows[0].cells)
    with figure_in(path, 11 if columns == 1 else 5 + 3 * columns, height) as figure:
        places = figure.add_gridspec(1, 2, width_ratios=(1, 1.2 if columns == 1 else 0.6 * columns))
        left, right = figure.add_subfigure(places[0]), figure.add_subfigure(places[1])
        whole = left.subplots()
        panels = [*right.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat]
        for number, (group, members) in enumerate(groups.items()):
            panel = panels[number]
            for row in members:
                level = levels.index(row.arm[-1])
                aside = (level + 0.5) / len(levels) - 0.5
                style: dict[str, Any] = {"color": f"C{level % 10}", "fmt": "os^D"[level // 10 % 4], "capsize": 2}
                place = number + 0.7 * aside if others else len(levels) * (aside + 0.5) - 0.5
                whole.errorbar(row.cells[ALL].value, place, xerr=_around([row.cells[ALL]]), **style)
                cells = [row.cells[name] for name in images]
                at = [count + 0.3 * aside for count in images.values()]
                label = row.arm[-1] if others else None
                panel.errorbar(
                    at, [c.value for c in cells], _around(cells), linestyle="-", linewidth=1, label=label, **style
                )
            panel.set_title(", ".join(group) or "by number of images", fontsize="medium" if others else None)
            panel.set_xticks([*images.values()])
        for number in range(len(groups), lines * columns):
            panels[number].set_axis_off()
            panels[number - columns].tick_params(labelbottom=True)  # the lowest of its column
        names = ["\n".join(group) for group in groups] if others else levels
        whole.set_yticks(range(len(names)), names)
        whole.invert_yaxis()
        whole.set(xlabel="exact match, %", ylabel=", ".join(others), title="all questions")
        right.supxlabel("images of the dialogue", fontsize="medium")
        if others:
            _legend(left, panels[: len(groups)], last)
        for axes in (whole, *panels):
            axes.grid(alpha=0.3)


def image_counts(cells: Mapping[str, Cell]) -> dict[str, int]:
    """How many images the groups have that go by them."""
    found = ((group, re.fullmatch(r"(\d+) images?", group)) for group in cells)
    return {group: int(match[1]) for group, match in found if match}


def _around(cells: Sequence[Cell]) -> list[list[float]]:
    """How far the intervals reach below and above their values."""
    return [[c.value - c.low for c in cells], [c.high - c.value for c in cells]]


def _legend(figure: FigureBase, panels: Sequence[Axes], title: str) -> None:
    """What the colours are, each once, though no panel may have them all."""
    found: dict[str, Any] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend([*found.values()], [*found], title=title, fontsize="small", loc="outside lower center", ncols=2)

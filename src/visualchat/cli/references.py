"""`visualchat-data references`: whether dialogues speak of images that exist and were shown, and hang together."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from visualchat.data.blend.mixture import Mixture
from visualchat.data.blend.origin import place_of
from visualchat.data.inspection.references import UNSOUND, Look, ReferenceTotals, looked_at, summed
from visualchat.data.inspection.references_page import Example, examples_page
from visualchat.data.progress import watched
from visualchat.data.sources.rows import printable
from visualchat.dialogue import Dialogue

console = Console()

HEADS = (
    "dialogues of",
    "dia-\nlogues",
    "images",
    "refer-\nences",
    "early",
    "mis-\nsing",
    "wrong",
    "un-\nclear",
    "named",
    "linked",
)
LEGEND = (
    "early: the image is shown later; missing: never; wrong: not the image that the row meant; unclear: several may be "
    "meant; named: images that some reference means; linked: dialogues of several images in which a round speaks of "
    "several, or of one before the newest"
)


def look_at_references(
    parts: Mapping[str, Sequence[Dialogue]], sources: Mapping[str, Sequence[Dialogue]], num_workers: int, examples: int
) -> tuple[dict[str, ReferenceTotals], list[Example]]:
    """The figures of each source and each part of a blend, by name, and references to show.

    Sources stand alone where dialogues are made of several of their rows.

    Args:
        parts: The data sets, by name.
        sources: The corpora that they draw from.
        num_workers: Processes that read.
        examples: References to show of each group and verdict.
    """
    figures: dict[str, ReferenceTotals] = {}
    found: list[Example] = []
    composed = False
    for part, dialogues in parts.items():
        mixture = Mixture.of(dialogues)
        looks = list(watched(looked_at(mixture, num_workers), f"reading {part}", len(mixture)))
        composed |= any(look.rows > 1 for look in looks)
        groups: dict[str, list[int]] = {name: [] for name in mixture.parts}
        for index in range(len(looks)):
            groups[mixture.locate(index)[0]].append(index)
        taken = [looks[index] for name, of in groups.items() if mixture.wanted[name] for index in of]
        for name, of in groups.items() if mixture.names else ():
            label = f"{part}: {name}" + ("" if mixture.wanted[name] else " (weight 0)")
            figures[label] = summed(looks[index] for index in of)
            found += _examples(label, mixture, {index: looks[index] for index in of}, examples)
        if len(groups) != 1 or not mixture.names:
            figures[part] = summed(taken)
        if not mixture.names:
            found += _examples(part, mixture, dict(enumerate(looks)), examples)
    for name, source in sources.items() if composed else ():
        looks = list(watched(looked_at(source, num_workers), f"reading {name}", len(source)))
        figures[f"source: {name}"] = summed(looks)
    return figures, found


def _examples(group: str, dialogues: Sequence[Dialogue], looks: Mapping[int, Look], most: int) -> Iterator[Example]:
    """The first references of each verdict that is not sound, each of another dialogue."""
    for verdict in (*UNSOUND, "unclear"):
        of = (
            (index, next((r for r in look.references if r.verdict == verdict), None)) for index, look in looks.items()
        )
        chosen = [(index, reference) for index, reference in of if reference is not None][:most]
        for index, reference in chosen:
            yield Example(group, printable(place_of(dialogues, index)), dialogues[index], reference)


def rows_of(figures: Mapping[str, ReferenceTotals]) -> list[tuple[str, ...]]:
    """The table: its heads, then a row a group."""
    found: list[tuple[str, ...]] = [HEADS]
    for name, of in figures.items():
        verdicts = [str(of.verdicts[verdict]) for verdict in (*UNSOUND, "unclear")]
        shares = _percent(of.named, of.images), _percent(of.linked, of.several)
        found.append((printable(name), str(of.dialogues), str(of.images), str(of.judged), *verdicts, *shares))
    return found


def _percent(count: int, of: int) -> str:
    return f"{100 * count / of:.0f}%" if of else "-"


def references(
    parts: Mapping[str, Sequence[Dialogue]], sources: Mapping[str, Sequence[Dialogue]], config: DictConfig, run: Path
) -> int:
    """Print the table, leave it with examples, and say where more references are unsound than is allowed.

    Returns:
        The exit code.

    Raises:
        ValueError: `max_unsound` is no share, or there is no sound dialogue.
    """
    limit = config.max_unsound
    if limit is not None and not 0 <= limit <= 1:
        raise ValueError(f"max_unsound={limit}: expected a share from 0 to 1")
    figures, examples = look_at_references(parts, sources, config.num_workers, config.examples)
    if not any(of.dialogues for of in figures.values()):
        raise ValueError("there is no sound dialogue; visualchat-data check says why")
    heads, *rows = rows_of(figures)
    table = Table(title="references to images", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for head in heads:
        first = head == heads[0]
        width = 18 if first else None
        table.add_column(
            head, justify="left" if first else "right", overflow="fold", no_wrap=not first, min_width=width
        )
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(LEGEND, highlight=False, soft_wrap=True)
    if bad := sum(of.bad for of in figures.values()):
        console.print(
            f"{bad} dialogues could not be read and are left out; visualchat-data check says why", style="red"
        )
    content = {
        "groups": {name: of.as_json() for name, of in figures.items()},
        "examples": [e.as_json() for e in examples],
    }
    run.mkdir(parents=True, exist_ok=True)
    (run / "references.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (run / "references.html").write_text(examples_page([heads, *rows], examples), encoding="utf-8")
    for name in ("references.json", "references.html"):
        console.print(f"  {os.path.relpath(run / name)}", highlight=False)
    above = [name for name, of in figures.items() if limit is not None and of.unsound_share > limit]
    for name in above:
        share = 100 * figures[name].unsound_share
        console.print(f"{name}: {share:.2f}% of its references are unsound, max_unsound={limit:g}", style="red")
    return 1 if above else 0

"""`visualchat-data`: check, measure, show, convert and prepare the dialogues that training would read."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from visualchat.cli.config import silence_libraries
from visualchat.cli.image_in_blocks import image_in_blocks
from visualchat.cli.main import data as main
from visualchat.cli.references import references
from visualchat.cli.scoring import blend_of
from visualchat.data.batching.packing import Packing
from visualchat.data.batching.truncation import turns_that_fit
from visualchat.data.blend.own import OwnData
from visualchat.data.inspection.check import Check, reasons
from visualchat.data.inspection.shards import write_shards
from visualchat.data.inspection.show import page, token_runs
from visualchat.data.inspection.survey import Finding, quantiles, survey, totals
from visualchat.data.progress import watched
from visualchat.data.sources import Report, RowError, Source
from visualchat.data.sources.rows import printable
from visualchat.dialogue import Dialogue
from visualchat.figures import figure_in
from visualchat.images.decode import decode_image

PARTS = ("train", "validation")
_GOOD = "every row is sound"
console = Console()


@dataclass(frozen=True)
class Data:
    """What a configuration names.

    Attributes:
        parts: The data sets asked for, by name.
        sources: The corpora that they draw from, by name; none where dialogues are made on the fly.
        leak: A sentence on validation dialogues that train, too; empty if none is known.
    """

    parts: dict[str, Sequence[Dialogue]]
    sources: dict[str, Source]
    leak: str = ""


def load(config: DictConfig, default: Sequence[str] = PARTS) -> Data:
    """The data sets of `config.part`, or of `default`.

    Raises:
        ValueError: There is no part of that name, or too few rows are sound; the bad ones are printed first.
    """
    if config.part is not None and config.part not in PARTS:
        raise ValueError(f"unknown part={config.part}, expected one of {', '.join(PARTS)}")
    names = default if config.part is None else (config.part,)
    blend = blend_of(config.data)
    if blend is not None:
        try:
            parts: dict[str, Sequence[Dialogue]] = {name: getattr(blend, name) for name in names}
            leak = blend.leak() if isinstance(blend, OwnData) and len(parts) == len(PARTS) else ""
            return Data(parts, dict(blend.sources), leak)
        except ValueError:
            rows = Check({}, blend.sources)
            if errors := rows.errors():
                _print_rows(rows.reports())
                _print_errors(errors)
            raise
    parts = {name: instantiate(config.data[name]) for name in names}
    return Data(parts, {name: part for name, part in parts.items() if isinstance(part, Source)})


def skip_damaged_rows(node: Any) -> None:
    """Let every source of a configuration leave damaged rows out and count them, so that all are found at once."""
    if isinstance(node, DictConfig):
        if "_target_" in node and "on_error" in inspect.signature(get_object(node._target_)).parameters:
            OmegaConf.update(node, "on_error", "skip", force_add=True)
        for key in map(str, node):
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                skip_damaged_rows(node[key])
    elif isinstance(node, ListConfig):
        for item in node:
            skip_damaged_rows(item)


def check(config: DictConfig, run: Path) -> int:
    """Read everything, images too; the number of bad rows and of parts that hold nothing.

    Raises:
        SystemExit: It was interrupted; what was found so far is printed and kept.
    """
    skip_damaged_rows(config)
    data = load(config)
    report = Check(data.parts, data.sources)
    try:
        report.run(instantiate(config.processor), config.data.max_length, config.num_workers)
    except KeyboardInterrupt:
        console.print("interrupted: this is what was found so far", style="yellow")
    for name, findings in report.findings.items():
        console.print(_totals_table(name, findings))
    _print_rows(report.reports())
    errors = report.errors()
    _print_errors(errors)
    empty = report.empty() if report.complete else []
    for name in empty:
        console.print(f"{name} holds no sound dialogue", style="red")
    if data.leak:
        console.print(data.leak, style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(errors)} bad rows" if errors else "no bad row so far" if not report.complete else _GOOD)
    _leave(run / "check.json", json.dumps({**report.as_json(), "leak": data.leak}, indent=2) + "\n")
    if not report.complete:
        sys.exit(130)
    return len(errors) + len(empty)


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    """A table whose names break over lines where they must, and whose numbers never do, also in a log of 80 columns."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _totals_table(title: str, findings: Sequence[Finding]) -> Table:
    columns = ("dialogues", "turns", "images", "tokens", "answer\ntokens", "cut", "bad", "sound\nrows\nlost")
    table = _table(title, "source", columns)
    for name, sum in totals(findings).items():
        values = (sum.rows, sum.turns, sum.images, sum.tokens, sum.answer_tokens, sum.cut, sum.bad, sum.sound_rows)
        table.add_row(printable(name), *(str(value) for value in values))
    return table


def _print_rows(reports: Mapping[str, Report]) -> None:
    """What became of the rows on disk, and why."""
    if not reports:
        return
    table = _table("rows on disk", "source", ("rows", "used", "left out", "rejected", "dialogues"))
    for report in reports.values():
        left_out, rejected = sum(report.left_out.values()), sum(report.rejected.values())
        numbers = (report.rows, report.members, left_out, rejected, report.dialogues)
        table.add_row(printable(report.source), *(str(number) for number in numbers))
    console.print(table)
    for report in reports.values():
        for reason in reasons(report):
            console.print(f"  {printable(report.source)}, {reason}", highlight=False, markup=False, soft_wrap=True)


def _print_errors(errors: Sequence[RowError]) -> None:
    """Each bad row on a line."""
    for error in errors:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)


def stats(config: DictConfig, run: Path) -> None:
    """How long the dialogues are, what they hold, and how full packed rows would be."""
    skip_damaged_rows(config)
    processor = instantiate(config.processor)
    limit = config.data.max_length
    figures: dict[str, Any] = {}
    for name, dialogues in load(config).parts.items():
        looks = survey(dialogues, processor, limit, decode=False, num_workers=config.num_workers)
        good = [finding for finding in watched(looks, f"measuring {name}", len(dialogues)) if not finding.reason]
        if not good:
            raise ValueError(f"{name} holds no sound dialogue; visualchat-data check says why")
        fields = {field: [getattr(f, field) for f in good] for field in ("tokens", "answer_tokens", "images", "turns")}
        table = Table(title=f"{name}: {len(good)} dialogues")
        table.add_column("in a dialogue")
        figures[name] = {"dialogues": len(good), "tokens": sum(fields["tokens"])}
        for field, values in fields.items():
            numbers = figures[name][f"{field} in a dialogue"] = quantiles(values)
            if not table.rows:
                for column in numbers:
                    table.add_column(column, justify="right")
            table.add_row(field.replace("_", " "), *(f"{number:.1f}".removesuffix(".0") for number in numbers.values()))
        console.print(table)
        console.print(_budget(fields, figures[name], limit))
        _draw(fields, run / f"{name}.png", f"{name}: {len(good)} dialogues")
    _leave(run / "stats.json", json.dumps(figures, indent=2) + "\n")


def _budget(fields: dict[str, list[int]], figures: dict[str, Any], limit: int | None) -> str:
    """The token budget in words; its numbers go into `figures`."""
    tokens, answers = sum(fields["tokens"]), sum(fields["answer_tokens"])
    sentence = f"{tokens} tokens an epoch, {100 * answers / tokens:.1f}% of them supervised"
    if limit is not None:
        packing = Packing(dict(enumerate(fields["tokens"])), limit)
        figures["packed rows"], figures["real tokens in packed rows"] = len(packing), packing.efficiency
        sentence += f"; packed: {len(packing)} rows of {limit}, {100 * packing.efficiency:.1f}% real tokens"
    return sentence


def _draw(fields: dict[str, list[int]], picture: Path, title: str) -> None:
    with figure_in(picture, 11, 3.2, title) as figure:
        for axes, field in zip(figure.subplots(1, 3), ("tokens", "images", "turns"), strict=True):
            values = fields[field]
            whole = [edge - 0.5 for edge in range(min(values), max(values) + 2)]
            axes.hist(values, bins=40 if field == "tokens" else whole)
            axes.set(xlabel=f"{field} in a dialogue", ylabel="dialogues")
    console.print(f"  {os.path.relpath(picture)}", highlight=False)


def show(config: DictConfig, run: Path) -> None:
    """One dialogue, in the terminal and as a page; damaged rows are not counted.

    Raises:
        ValueError: There is no dialogue of that number, or it is bad.
    """
    skip_damaged_rows(config)
    processor = instantiate(config.processor)
    ((name, dialogues),) = load(config, PARTS[:1]).parts.items()
    if not 0 <= config.number < len(dialogues):
        raise ValueError(f"{name} holds dialogues 0 to {len(dialogues) - 1}, asked for {config.number}")
    dialogue = dialogues[config.number]
    encoding = processor.encode(dialogue)
    fits = turns_that_fit(dialogue.require_answers(), encoding, config.data.max_length)
    kept = encoding.answer_spans[fits - 1][1]
    runs = token_runs(encoding, processor.tokenizer, processor.image_seq_length, kept)
    supervised = sum(one.tokens for one in runs if one.kind == "answer")
    summary = f"{name} {config.number}: {len(encoding)} tokens, {supervised} supervised, {kept} within the limit"
    console.print(f"{printable(dialogue.id)}; {summary}", highlight=False, markup=False)
    images = iter(dialogue.images)
    for one in runs:
        if one.kind == "image":
            console.print(image_in_blocks(decode_image(next(images))), end="")
        else:
            style = "strike dim" if one.cut else "bold green" if one.kind == "answer" else ""
            console.print(Text(printable(one.text), style), end="")
    console.print()
    _leave(run / f"dialogue-{config.number}.html", page(dialogue, runs, summary))


def convert(config: DictConfig, run: Path) -> None:
    """Write the dialogues of a part as Parquet shards."""
    ((name, dialogues),) = load(config, PARTS[:1]).parts.items()
    rows = (dialogues[row] for row in range(len(dialogues)))
    paths = write_shards(rows, run / name, rows=config.shard_rows)
    console.print(
        f"{len(dialogues)} dialogues in {len(paths)} shards in {os.path.relpath(run / name)}/", highlight=False
    )


def prepare(config: DictConfig) -> None:
    """Read annotations and build indexes, once."""
    sources = load(config).sources
    if not sources:
        console.print("nothing to prepare: these dialogues need no index")
        return
    _print_rows({name: source.prepare() for name, source in sources.items()})


def _leave(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    console.print(f"  {os.path.relpath(path)}", highlight=False)


def run(config: DictConfig) -> None:
    """The command."""
    silence_libraries()
    folder = Path(HydraConfig.get().runtime.output_dir)
    if config.action == "check":
        sys.exit(1 if check(config, folder) else 0)
    elif config.action == "references":
        skip_damaged_rows(config)
        data = load(config)
        sys.exit(references(data.parts, data.sources, config, folder))
    elif config.action == "prepare":
        prepare(config)
    else:
        {"stats": stats, "show": show, "convert": convert}[config.action](config, folder)


if __name__ == "__main__":
    main()

"""`visualchat-evaluate answers=[...]`: answers of several models to one file of conversations, beside each other."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from visualchat.cli.answer_scores import IMAGES, image_files
from visualchat.cli.config import PLAIN
from visualchat.cli.generate import questions
from visualchat.evaluation.answer_files import Conversations, as_predictions, common_questions, read_answers
from visualchat.evaluation.metrics import METRICS
from visualchat.evaluation.side_by_side import CONSISTENCY, compared, side_by_side_page, table_rows

console = Console()
DEFAULT = "rouge_l"
"""What answers are scored by where no metric is named."""


def compare_answers(config: DictConfig, run: Path) -> None:
    """Compare files of answers; the table is printed, page and figures go into the folder `run`.

    Raises:
        ValueError: Files are not named as expected, do not fit the conversations, or a metric is not one of answers.
    """
    files = named_files(config.answers)
    metrics = [*config.evaluation.metrics] or [DEFAULT]
    if wrong := next((name for name in metrics if name not in METRICS), None):
        raise ValueError(f"evaluation.metrics=[{wrong}] is not of single answers; expected of {', '.join(METRICS)}")
    if config.input is None:
        raise ValueError("answers=[...] needs input=FILE, the conversations that they answer")
    names = ("input", "root", "image_folder", "images_first", "on_error")
    source = questions(OmegaConf.create({**{name: config[name] for name in names}, "rounds": "all"}))
    asked = Conversations(source.name if isinstance(config.input, str) else "conversations", [*source])
    answers = {name: read_answers(path, asked) for name, path in files.items()}
    common, missing = common_questions(answers, asked, skip=config.on_error == "skip")
    wanted = {id for id, _ in common}
    shown = {d.id: image_files(d, run / IMAGES) for d in asked.dialogues if d.id in wanted}
    beside = {name: as_predictions(name, of, common, asked, shown) for name, of in answers.items()}
    found = compared(beside, [*dict.fromkeys([*metrics, CONSISTENCY])])
    notes = [f"{len(common)} questions of {len(wanted)} conversations, answered by all of {', '.join(files)}"]
    notes += [f"{name} lacks {len(of)} answers that others have: left out" for name, of in missing.items()]
    first = next(iter(beside.values()))
    if open_ones := sum(not p.references for p in first):
        notes.append(f"{open_ones} of them have no true answer and are left out of {', '.join(metrics)}")
    page = side_by_side_page(" and ".join(files), beside, found, metrics[0], notes)
    (run / "side_by_side.html").write_text(page, encoding="utf-8")
    figures = {"notes": notes, "figures": [asdict(one) for one in found]}
    (run / "side_by_side.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _print(notes, table_rows(found))
    for name, what in (("side_by_side.html", "all answers with the images"), ("side_by_side.json", "the figures")):
        console.print(f"  {os.path.relpath(run / name)}  {what}", **PLAIN)


def _print(notes: list[str], rows: list[tuple[str, ...]]) -> None:
    for note in notes:
        console.print(note, **PLAIN)
    table = Table(box=box.SIMPLE_HEAD)
    for n, head in enumerate(rows[0]):
        table.add_column(head, justify="left" if n < 2 else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def named_files(answers: object) -> Mapping[str, Path]:
    """The files by the names of their models: as they are given, or the files' own.

    Raises:
        ValueError: There are fewer than two, or two have one name.
    """
    plain = OmegaConf.to_container(answers) if OmegaConf.is_config(answers) else answers
    if isinstance(plain, Mapping):
        files = {str(name): Path(str(path)) for name, path in plain.items()}
    else:
        paths = [Path(str(path)) for path in (plain if isinstance(plain, list) else [plain])]
        if twice := [name for name, count in Counter(path.stem for path in paths).items() if count > 1]:
            raise ValueError(f"answers: two files are called {twice[0]}; name them: answers={{one: FILE, other: FILE}}")
        files = {path.stem: path for path in paths}
    if len(files) < 2:
        raise ValueError("answers=[...] compares models: name two files or more")
    return files

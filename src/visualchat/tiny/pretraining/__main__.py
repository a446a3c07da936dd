"""`python -m visualchat.tiny.pretraining`: makes the tiny world's tokenizer, vision tower and language models.

One seeded command on a CPU, from nothing; the parts run in processes of one thread each. Without `--out` it replaces
the shipped files.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from visualchat.tiny import BACKBONES
from visualchat.tiny.pretraining.card import card
from visualchat.tiny.pretraining.parts import end_with_the_command, make_tokenizer, train_part
from visualchat.tiny.pretraining.recipes import RECIPES

TRAINED = ("vision", *RECIPES)
PARTS = ("tokenizer", *(name.replace("_", "-") for name in TRAINED), "card")
SCORES = "scores.json"


def train_parts(
    names: Sequence[str], out: Path, seed: int, workers: int, console: Console
) -> dict[str, dict[str, Any]]:
    """Train the named parts, `workers` at a time, under a progress display; their results by name."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    context = multiprocessing.get_context("spawn")
    columns = (
        TextColumn("{task.description:16}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    manager = SyncManager(ctx=context)
    manager.start(end_with_the_command)
    with (
        manager,
        ProcessPoolExecutor(workers, context, initializer=end_with_the_command) as pool,
        Progress(*columns, console=console) as progress,
    ):
        messages = manager.Queue()
        bars = {name: progress.add_task(name, total=None, loss=float("nan")) for name in names}
        futures = {name: pool.submit(train_part, name, out, seed, messages) for name in names}
        _show(progress, bars, futures, messages)
        return {name: future.result() for name, future in futures.items()}


def _show(progress: Progress, bars: dict[str, TaskID], futures: dict[str, Future[Any]], messages: Any) -> None:
    """Move the bars until every part is done or one has failed."""
    while not all(future.done() for future in futures.values()):
        if any(future.done() and future.exception() for future in futures.values()):
            return
        try:
            name, done, total, loss = messages.get(timeout=1)
        except queue.Empty:
            continue
        progress.update(bars[name], completed=done, total=total, loss=loss)


def _record(out: Path, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Merge results into the score file, so that parts can be made one at a time."""
    path = out / SCORES
    scores = json.loads(path.read_text()) if path.exists() else {}
    scores |= results
    if results:
        scores["versions"] = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
    path.write_text(json.dumps(scores, indent=2, sort_keys=True) + "\n")
    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m visualchat.tiny.pretraining", description=__doc__)
    parser.add_argument("--out", type=Path, default=BACKBONES, help="folder to write (default: the shipped backbones)")
    parser.add_argument("--only", choices=PARTS, action="append", help="make this part only; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="decides weights and data (default: 0)")
    parser.add_argument("--workers", type=int, default=2, help="parts trained at a time, one thread each (default: 2)")
    options = parser.parse_args(arguments)
    console = Console()
    parts = options.only or PARTS
    names = [name for name in reversed(TRAINED) if name.replace("_", "-") in parts]  # the longest first
    for name in names:
        start = RECIPES[name].start if name in RECIPES else ""
        if start and start not in names and not (options.out / start / "config.json").exists():
            parser.error(f"{name} grows from {start}, which is not in {options.out}: make it too, or copy it there")
    options.out.mkdir(parents=True, exist_ok=True)
    if "tokenizer" in parts:
        make_tokenizer(options.out)
    results: dict[str, dict[str, Any]] = {}
    while names:
        ready = [name for name in names if name == "vision" or RECIPES[name].start not in names]
        results |= train_parts(ready, options.out, options.seed, options.workers, console)
        names = [name for name in names if name not in ready]
    scores = _record(options.out, results)
    if "card" in parts:
        (options.out / "README.md").write_text(card(scores))
    console.print(f"done: {', '.join(parts)}")


if __name__ == "__main__":
    main()

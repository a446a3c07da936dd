"""What a Hydra multirun leaves: one table, one file and one figure that compare its runs, failed ones named."""

from __future__ import annotations

import csv
import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Column, Table

from visualchat.figures import figure_in

SHOWN = {
    "exact_match/all": "all",
    "seen/exact_match/all": "seen",
    "unseen/exact_match/all": "unseen",
    "validation/exact_match": "validation",
    "answer_loss/all": "answer loss",
    "train/seconds": "seconds",
}
"""Metrics of the table, and how its columns are headed; one that no run has is left out."""

_WITHOUT_COLUMN = ("token_accuracy/all", "cut/all")
_ENDS = ("low", "high")

FAILURE = "failed.txt"
"""In the folder of a run that failed: its error."""


@dataclass(frozen=True)
class Run:
    """One run of a sweep: what was set, and what came of it.

    Attributes:
        overrides: What was set.
        metrics: Its figures; none where it did not finish.
        state: `finished`, `failed` (it ended with an error) or `unfinished` (it is running, or was killed).
        scored: The interval of each metric that its evaluation named; None where it has none.
    """

    overrides: dict[str, str]
    metrics: dict[str, float]
    state: str = "finished"
    scored: dict[str, tuple[float, float] | None] = field(default_factory=dict)


def read_runs(folder: Path) -> list[Run]:
    """The runs of a sweep that have begun, in the order of their jobs."""
    by_job: list[tuple[int, Run]] = []
    for path in folder.rglob(".hydra/hydra.yaml"):
        number, overrides = _job(path, path.stat().st_mtime_ns)
        figures = path.parents[1] / "metrics.json"
        if figures.is_file():
            run = Run(overrides, json.loads(figures.read_text()), scored=_scored(figures.with_name("scores.json")))
        else:
            run = Run(overrides, {}, "failed" if figures.with_name(FAILURE).is_file() else "unfinished")
        by_job.append((number, run))
    return [run for _, run in sorted(by_job, key=lambda pair: pair[0])]


@cache
def _job(record: Path, changed: int) -> tuple[int, dict[str, str]]:
    """The number of a run's job and what was set, from Hydra's record of it, which is read once until it changes.

    A sweep asks after every run for all runs so far, and reading the record takes a tenth of a second.
    """
    hydra = OmegaConf.load(record).hydra
    return int(hydra.job.num), dict(item.lstrip("+").split("=", 1) for item in hydra.overrides.task)


def _scored(scores: Path) -> dict[str, tuple[float, float] | None]:
    """The intervals of the trained model's metrics over all questions; none where its evaluation named no metrics."""
    rows = json.loads(scores.read_text()) if scores.is_file() else []
    names = {r["name"]: r for r in rows if r["column"] == "tuned" and r["name"].count("/") == 1}
    return {
        name: None if r["low"] is None else (r["low"], r["high"])
        for name, r in names.items()
        if name.endswith("/all") and name not in SHOWN and name not in _WITHOUT_COLUMN
    }


def varied(runs: Sequence[Run]) -> list[str]:
    """The overrides in which the runs differ; all of them if they do not."""
    names = list(runs[0].overrides)
    return [name for name in names if len({run.overrides.get(name) for run in runs}) > 1] or names


def sweep_table(runs: Sequence[Run]) -> Table:
    """One row a run; a dash where a run has no figure, and its state in place of the first if it did not finish.

    Where the evaluation named metrics, these stand beside exact match, and all else is in `sweep.csv`.
    """
    names = varied(runs)
    metrics = {name: name.removesuffix("/all") for name in dict.fromkeys(name for run in runs for name in run.scored)}
    always = {"exact_match/all": "all"} if metrics else SHOWN  # with intervals the table would be too wide for more
    shown = {name: head for name, head in always.items() if any(name in run.metrics for run in runs)} | metrics
    shown = shown or {"exact_match/all": "all"}  # no run finished: a column for how they ended
    settings = [Column(name.rpartition(".")[2], overflow="fold") for name in names]
    figures = [Column(head, no_wrap=True) for head in shown.values()]
    others = f"; {', '.join(metrics.values())} x 100, with 95% intervals" if metrics else ""
    table = Table(*settings, *figures, title=f"sweep (exact match in %{others})")
    for run in runs:
        cells = [_cell(name, run.metrics[name], run.scored.get(name)) if name in run.metrics else "-" for name in shown]
        if run.state != "finished":
            cells[0] = run.state
        table.add_row(*(run.overrides.get(name, "") for name in names), *cells)
    return table


def _cell(metric: str, value: float, interval: tuple[float, float] | None = None) -> str:
    digits = {"train/seconds": f"{value:.0f}", "answer_loss/all": f"{value:.3f}", "perplexity/all": f"{value:.3f}"}
    between = "" if interval is None else f" ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"
    return digits.get(metric, f"{100 * value:.1f}{between}")  # nats and seconds as they are, all else times 100


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """The state, all metrics and their intervals of all runs."""
    names = varied(runs)
    figures = [
        run.metrics
        | {f"{name} {end}": v for name, both in run.scored.items() if both for end, v in zip(_ENDS, both, strict=True)}
        for run in runs
    ]
    metrics = sorted({name for of in figures for name in of})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "state", *metrics])
        for run, of in zip(runs, figures, strict=True):
            values = [run.overrides.get(name, "") for name in names]
            writer.writerow([*values, run.state, *(of.get(name, "") for name in metrics)])


def draw_sweep(runs: Sequence[Run], path: Path) -> bool:
    """Exact match over the last numeric override, one line for each value of the others; bars if none is numeric.

    Without an evaluation after training it is the one of the validation part. Runs without it, such as those that did
    not finish, are left out.

    Returns:
        Whether there was anything to draw.
    """
    scores = ("exact_match/all", "validation/exact_match")
    score = next((name for name in scores if all(name in run.metrics for run in runs if run.metrics)), scores[1])
    runs = [run for run in runs if score in run.metrics]
    if not runs:
        return False
    names = varied(runs)
    numeric = [name for name in names if all(_is_number(run.overrides.get(name, "")) for run in runs)]
    with figure_in(path, 6.5, 4 if numeric else 1.2 + 0.3 * len(runs)) as figure:
        axes = figure.subplots()
        axes.set(title="held-out dialogues")
        if numeric:
            along = numeric[-1]
            lines: dict[str, list[tuple[float, float]]] = {}
            for run in runs:
                label = ", ".join(f"{n}={run.overrides.get(n, '')}" for n in names if n != along)
                point = (float(run.overrides[along]), 100 * run.metrics[score])
                lines.setdefault(label, []).append(point)
            for label, points in lines.items():
                axes.plot(*zip(*sorted(points), strict=True), "o-", label=label)
            axes.set(xlabel=along, ylabel="exact match, %")
            if len(names) > 1:
                axes.legend()
        else:
            labels = [", ".join(run.overrides.get(name, "") for name in names) for run in runs]
            bars = axes.barh(labels, [100 * run.metrics[score] for run in runs])
            axes.bar_label(bars, fmt="%.1f", padding=2)
            axes.invert_yaxis()  # the first run on top, as in the table
            axes.set(xlabel="exact match, %", ylabel=", ".join(names), xlim=(0, 100))
        axes.grid(alpha=0.3)
    return True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class SweepReport(Callback):
    """Hydra's hook in a multirun: keeps `sweep.csv` and `sweep.png` up to date and prints the table at the end.

    It writes after every run, because Hydra does not come to the end of a multirun that holds a failed run.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Keep the error of a failed run; compare the runs so far."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        if job_return.status is JobStatus.FAILED:
            error = job_return._return_value
            folder = Path(config.hydra.runtime.output_dir)
            (folder / FAILURE).write_text("".join(traceback.format_exception(error)))
            Console().print(f"this run failed: {error}\nthe rest of the sweep continues", markup=False, highlight=False)
        self._compare(Path(config.hydra.sweep.dir), show=False)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare all runs."""
        self._compare(Path(config.hydra.sweep.dir), show=True)

    def _compare(self, folder: Path, *, show: bool) -> None:
        """Write the file and, once a run has finished, the figure; print the table if asked or if a run failed."""
        runs = read_runs(folder)
        show |= any(run.state == "failed" for run in runs)
        console = Console()
        if runs:
            write_csv(runs, folder / "sweep.csv")
        if runs and show:
            console.print(sweep_table(runs))
        if any(run.metrics for run in runs):
            drawn = draw_sweep(runs, folder / "sweep.png")
            if show:
                line = f"all figures are in {folder}/sweep.csv"
                line += f", the figure in {folder}/sweep.png" if drawn else "; no figure: no exact match was measured"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif show:
            console.print(f"no run of the sweep finished: {folder}/ holds no metrics.json", highlight=False)

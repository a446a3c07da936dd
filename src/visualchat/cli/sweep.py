"""What a Hydra multirun leaves: one table, one file and one picture that compare its runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

SHOWN = {
    "exact_match/all": "all",
    "seen/exact_match/all": "seen",
    "unseen/exact_match/all": "unseen",
    "validation/exact_match": "validation",
    "train/seconds": "seconds",
}
"""Metrics of the table, and how its columns are headed; one that no run has is left out."""


@dataclass(frozen=True)
class Run:
    """One run of a sweep: what was set, and what came of it."""

    overrides: dict[str, str]
    metrics: dict[str, float]


def read_runs(folder: Path) -> list[Run]:
    """The finished runs of a sweep, in the order of their jobs."""
    found: list[tuple[int, Run]] = []
    for path in folder.rglob("metrics.json"):  # a group's name has slashes, and so has the folder named after it
        hydra = OmegaConf.load(path.parent / ".hydra" / "hydra.yaml").hydra
        overrides = dict(item.lstrip("+").split("=", 1) for item in hydra.overrides.task)
        found.append((int(hydra.job.num), Run(overrides, json.loads(path.read_text()))))
    return [run for _, run in sorted(found, key=lambda pair: pair[0])]


def varied(runs: Sequence[Run]) -> list[str]:
    """The overrides in which the runs differ; all of them if they do not."""
    names = list(runs[0].overrides)
    return [name for name in names if len({run.overrides.get(name) for run in runs}) > 1] or names


def sweep_table(runs: Sequence[Run]) -> Table:
    """One row a run; a dash where a run has no figure."""
    names = varied(runs)
    shown = {metric: head for metric, head in SHOWN.items() if any(metric in run.metrics for run in runs)}
    table = Table(*(name.rpartition(".")[2] for name in names), *shown.values(), title="sweep (exact match in %)")
    for run in runs:
        cells = [_cell(metric, run.metrics[metric]) if metric in run.metrics else "-" for metric in shown]
        table.add_row(*(run.overrides.get(name, "") for name in names), *cells)
    return table


def _cell(metric: str, value: float) -> str:
    return f"{value:.0f}" if metric == "train/seconds" else f"{100 * value:.1f}"


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """All metrics of all runs."""
    names = varied(runs)
    metrics = sorted({name for run in runs for name in run.metrics})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *metrics])
        for run in runs:
            writer.writerow([*(run.overrides.get(n, "") for n in names), *(run.metrics.get(m, "") for m in metrics)])


def draw_sweep(runs: Sequence[Run], path: Path) -> None:
    """Exact match over the last numeric override, one line for each value of the others; bars if none is numeric.

    Without an evaluation after training it is the one of the validation part.
    """
    score = "exact_match/all" if all("exact_match/all" in run.metrics for run in runs) else "validation/exact_match"
    names = varied(runs)
    numeric = [name for name in names if all(_is_number(run.overrides.get(name, "")) for run in runs)]
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(ylabel="exact match, %", title="held-out dialogues")
    if numeric:
        along = numeric[-1]
        lines: dict[str, list[tuple[float, float]]] = {}
        for run in runs:
            label = ", ".join(f"{n}={run.overrides.get(n, '')}" for n in names if n != along)
            point = (float(run.overrides[along]), 100 * run.metrics[score])
            lines.setdefault(label, []).append(point)
        for label, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), "o-", label=label)
        axes.set(xlabel=along)
        if len(names) > 1:
            axes.legend()
    else:
        labels = ["\n".join(f"{n}={run.overrides.get(n, '')}" for n in names) for run in runs]
        axes.bar(labels, [100 * run.metrics[score] for run in runs])
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class SweepReport(Callback):
    """Hydra's hook at the end of a multirun: writes `sweep.csv` and `sweep.png` and prints the table."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare the runs that finished."""
        folder = Path(config.hydra.sweep.dir)
        runs = read_runs(folder)
        console = Console()
        if not runs:
            console.print(f"no run of the sweep finished: {folder}/ holds no metrics.json")
            return
        console.print(sweep_table(runs))
        write_csv(runs, folder / "sweep.csv")
        draw_sweep(runs, folder / "sweep.png")
        console.print(f"all figures are in {folder}/sweep.csv, the picture in {folder}/sweep.png", highlight=False)

"""What `train_step.py` measured: as tables on the terminal, and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TARGETS = {"mmca and unit times faster than causal, at least": 1.35, "their peak memory on a CPU, GB": 1.1}


def show(result: dict[str, Any], pairs: dict[str, tuple[str, str]]) -> None:
    """The tables on the terminal, and the targets; `pairs` has the slower and the faster case of each gain."""
    from rich.console import Console
    from rich.table import Table

    facts, console = result["machine"], Console(width=130)
    table = Table(title=f"{facts['processor']}, {facts['dtype']}, {result['size']['name']}, {facts['threads']} threads")
    for column in ("case", "seconds", "tokens/s", "GFLOP/s", "MFU", "peak GB", "of it in the steps", "loss"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for r in result["cases"]:
        mfu = "" if r["mfu"] is None else f"{r['mfu']:.1%}"
        grown = f"{(r['peak_bytes'] - r['bytes_before']) / 1e9:.2f}"
        speed = (f"{r['seconds']:.3f}", f"{r['tokens_a_second']:.0f}", f"{r['flops_a_second'] / 1e9:.0f}", mfu)
        table.add_row(r["case"], *speed, f"{r['peak_bytes'] / 1e9:.2f}", grown, f"{r['loss']:.5f}")
    console.print(table)
    for name, gain in result["times faster"].items():
        before, after = pairs[name]
        spread = f"({gain['least']:.2f} to {gain['most']:.2f})"
        console.print(f"{after} is {gain['median']:.2f} times as fast as {before} {spread}", highlight=False)
    console.print("targets: " + "; ".join(f"{name} {value}" for name, value in TARGETS.items()), highlight=False)


def draw(result: dict[str, Any], path: Path) -> None:
    """Two panels: tokens a second and peak memory by case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained", sharey=True)
    cases = [r["case"] for r in result["cases"]]
    colours = ["tab:grey" if case.startswith("causal") else "tab:blue" for case in cases]
    left.barh(cases, [r["tokens_a_second"] for r in result["cases"]], color=colours)
    left.invert_yaxis()
    left.set_xlabel("real tokens a second, whole training step")
    right.barh(cases, [r["peak_bytes"] / 1e9 for r in result["cases"]], color=colours)
    right.set_xlabel("peak memory, GB")
    if result["machine"]["device"] == "cpu" and result["size"]["name"] == "small":
        right.axvline(1.1, color="black", linewidth=0.8, linestyle="--")
    figure.suptitle(f"{result['machine']['processor']}, {result['machine']['threads']} threads", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)

"""What `attention.py` measured: as a table on the terminal and in a document, and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import put_between

MARKS = ("<!-- measured -->", "<!-- end of measured -->")


def show(result: dict[str, Any]) -> None:
    """The table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    facts = result["machine"]
    title = f"{facts['processor']}, {facts['dtype']}, H={facts['heads']}, D={facts['head_size']}"
    table = Table(title=f"{title}, {facts['threads']} threads; x: times faster than causal")
    for column in ("layout", "form", "forward ms", "x", "fwd+bwd ms", "x", "x by pairs", "decode ms", "cost", "MiB"):
        table.add_column(column, justify="left" if column in ("layout", "form") else "right")

    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    for r in result["layouts"]:
        first = r["form"] == "causal"
        cells = [
            number(r["forward_ms"], 1),
            number(r["forward_speedup"], 2),
            number(r["training_ms"], 1),
            number(r["training_speedup"], 2),
            number(r["pairs_speedup"], 2),
            number(r.get("decode_ms"), 3),
            number(r["decode_cost"], 2),
            number(r["extra_bytes"] / 2**20, 0),
        ]
        table.add_row(f"{r['layout']}, {r['tokens']}" if first else "", r["form"], *cells, end_section=False)
    Console(width=150).print(table)


def document(result: dict[str, Any], path: Path) -> None:
    """Put the table between the marks of a Markdown document."""
    facts = result["machine"]
    lines = [
        f"{facts['processor']}, {facts['threads']} threads, torch {facts['torch']}, {facts['dtype']}, B=1, "
        f"H={facts['heads']}, D={facts['head_size']}; times faster than plain causal attention of the same length, "
        f"median (least to most) of {facts['repeats']} pairs, and what a decode step costs beside the causal one:",
        "",
        "| layout | form | forward | forward + backward | by pairs | decode cost | extra MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in result["layouts"]:
        spread = f"{r['training_speedup']:.2f} ({r['training_least']:.2f} to {r['training_most']:.2f})"
        others = ["" if r[name] is None else f"{r[name]:.2f}" for name in ("pairs_speedup", "decode_cost")]
        cells = [f"{r['forward_speedup']:.2f}", spread, *others]
        lines.append(
            "| "
            + " | ".join([f"{r['layout']}, {r['tokens']}", r["form"], *cells, f"{r['extra_bytes'] / 2**20:.0f}"])
            + " |"
        )
    put_between(path, MARKS, lines)


def draw(result: dict[str, Any], layouts: list[str], path: Path) -> None:
    """Two panels: times faster than causal by layout; memory by length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    names = [name for name in dict.fromkeys(r["form"] for r in result["layouts"]) if name != "causal"]
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        values = {r["layout"]: r["training_speedup"] for r in result["layouts"] if r["form"] == name}
        left.barh(
            [i + place * height for i in range(len(layouts))], [values.get(k, 0) for k in layouts], height, label=name
        )
    left.axvline(1, color="black", linewidth=0.8)
    left.set_yticks([i + 0.4 - height / 2 for i in range(len(layouts))], layouts)
    left.invert_yaxis()
    left.set_xlabel("forward + backward: times faster than plain causal attention")
    left.legend(fontsize=8)
    for name in dict.fromkeys(r["form"] for r in result["memory"]):
        points = [(r["tokens"], r["extra_bytes"] / 2**20) for r in result["memory"] if r["form"] == name]
        right.loglog(*zip(*points, strict=True), marker="o", label=name, base=2)
    right.set_xlabel("tokens (eight images)")
    right.set_ylabel("peak extra memory, forward + backward, MiB")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)

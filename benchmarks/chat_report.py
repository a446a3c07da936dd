"""What `chat.py` measured: as tables for docs/chat.md and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visualchat.figures import figure_in


def tables(result: dict[str, Any]) -> str:
    """For a document."""
    kinds = result["kinds"]
    lines = []
    for case in next(iter(kinds.values()))["new conversation"]:
        names = [name for name in kinds["numbered"]["new conversation"][case]["ms"] if name != "known images"]
        lines += [case, "", f"| | known images, ms | {' | '.join(names)} |", "|---|" + "---:|" * (len(names) + 1)]
        for kind, found in kinds.items():
            figures = found["new conversation"][case]
            ratios = " | ".join(f"{figures['known images by each'][name]:.2f}" for name in names)
            lines.append(f"| {kind} | {figures['ms']['known images']:.0f} | {ratios} |")
        lines.append("")
    lines += ["| | round 2, ms | last round, ms | ratio |", "|---|---:|---:|---:|"]
    for kind, found in kinds.items():
        for name, times in found["ms by round"].items():
            ratio = found["last round by second"][name]
            lines.append(f"| {kind}, {name} | {times[1]:.1f} | {times[-1]:.1f} | {ratio:.2f} |")
    lines += ["", "| | largest difference of logits | tokens alike |", "|---|---:|---:|"]
    for name, found in result["exactness"].items():
        lines.append(f"| {name} | {found['largest difference of logits']:.2g} | {found['tokens alike']:.0%} |")
    lines += ["", "| | MB of a known image |", "|---|---:|"]
    lines += [f"| {kind} | {found['bytes of an image'] / 1e6:.1f} |" for kind, found in kinds.items()]
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Time until the first token: of each round, and of a new conversation about known images."""
    found = result["kinds"]["numbered"]
    with figure_in(path, 10, 4) as figure:
        by_round, bars = figure.subplots(1, 2)
        for name, times in found["ms by round"].items():
            by_round.plot(range(1, len(times) + 1), times, marker=".", label=name)
        by_round.set(
            title=f"{result['images']} images in round 1, then text", xlabel="round", ylabel="ms until the first token"
        )
        by_round.set(yscale="log")
        by_round.legend()
        case, figures = next(iter(found["new conversation"].items()))
        names = [*figures["ms"]]
        bars.barh(names, [figures["ms"][name] for name in names])
        bars.invert_yaxis()
        bars.set(title=f"new conversation, {case}", xlabel="ms until the first token")

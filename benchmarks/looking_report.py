"""What `looking.py` read: as a page and as a figure."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from visualchat.figures import figure_in
from visualchat.studies.page import markdown_table, with_discussion


def page(result: dict[str, Any], before: str) -> str:
    """The page in Markdown; the discussion of the page as it was stays."""
    seeds = max(len(of) for of in result["arms"].values())
    blocks = [
        "# Where trained models look",
        "*Made by `python benchmarks/looking.py`, all but the discussion, from the models of "
        "[image_numbers](image_numbers.md).*",
        "## Question",
        "DeepSpeed-VisualChat gives images a softmax of their own because causal attention gave them less and less "
        "of its weight, layer by layer (section 4.1). Does it, here? And of the weight on images, how much goes to "
        "the one that is asked about?",
        "## Design",
        f"{result['questions']} questions about one of two to four images, in {result['dialogues']} dialogues of the "
        "tiny world that nothing was trained or scored on. For the tokens of the true answer: the weights by which "
        f"each was chosen, mean over tokens, heads and questions; mean (least to most) of up to {seeds} seeds.",
        "## Weight on images, in percent of all",
        "Where text and images have a softmax each, images have as much as text by construction.",
        _table(result, "images"),
        "## Weight on the image that is asked about, in percent of that on images",
        f"By chance {100 * result['chance']:.1f}.",
        _table(result, "asked"),
        "![Where trained models look](looking.png)",
    ]
    return with_discussion(blocks, before)


def _of(seeds: dict[str, Any], share: str) -> list[list[float]]:
    """By layer, in percent, a figure a seed."""
    return [[100 * value for value in layer] for layer in zip(*(of[share] for of in seeds.values()), strict=True)]


def _with(result: dict[str, Any], share: str) -> dict[str, list[list[float]]]:
    return {arm: _of(seeds, share) for arm, seeds in result["arms"].items() if share in next(iter(seeds.values()))}


def _table(result: dict[str, Any], share: str) -> str:
    found = _with(result, share)
    layers = len(next(iter(found.values())))
    rows = [["attention", *(f"layer {number + 1}" for number in range(layers))]]
    for arm, by_layer in found.items():
        rows.append([arm, *(f"{statistics.fmean(of):.0f} ({min(of):.0f} to {max(of):.0f})" for of in by_layer)])
    return markdown_table(rows)


def draw(result: dict[str, Any], path: Path) -> None:
    """Both shares by layer, a line an arm; its seeds as dots."""
    titles = {"images": "weight on images, % of all", "asked": "on the image asked about, % of that"}
    colours = {arm: f"C{number}" for number, arm in enumerate(result["arms"])}
    with figure_in(path, 10, 4) as figure:
        for axes, (share, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
            for arm, by_layer in _with(result, share).items():
                layers = range(1, len(by_layer) + 1)
                axes.plot(layers, [statistics.fmean(of) for of in by_layer], color=colours[arm], label=arm)
                for layer, of in zip(layers, by_layer, strict=True):
                    axes.plot([layer] * len(of), of, ".", color=colours[arm], markersize=4)
            axes.set(title=title, xlabel="layer", xticks=layers, ylim=(0, 100))
            axes.grid(alpha=0.3)
        axes.axhline(100 * result["chance"], color="grey", linestyle=":", label="chance")
        axes.legend(fontsize="small")

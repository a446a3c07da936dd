"""The card of the tiny backbones: how they were made and what they score, written from the score file."""

from __future__ import annotations

from typing import Any

from visualchat.tiny.pretraining.recipes import RECIPES
from visualchat.tiny.pretraining.vision import VisionRecipe
from visualchat.tiny.scenes import HELD_OUT

_TITLES = {
    "vision": "a SigLIP-style vision tower: 64x64 pixels, 16 patches, 3 layers of width 96, no class token and no head",
    "language_causal": "a LLaMA of 4 layers, 4 heads and width 128, pretrained with causal attention on captions",
    "language_mixed": "the same LLaMA, pretrained also on folded captions, with `mmca` and with causal attention",
    "language_hops": "`language_causal` with two more layers, pretrained further on captions: questions with hops",
    "language_hops_mixed": "`language_mixed` with two more layers, pretrained further: questions with hops",
    "language_hops_wide": "`language_hops` made 192 wide, with 6 heads, pretrained further",
}


def card(scores: dict[str, Any]) -> str:
    """The card in Markdown.

    Args:
        scores: What `visualchat.tiny.pretraining` records: for each part its parameters, seed, seconds and scores.
    """
    parts = [name for name in _TITLES if name in scores]
    lines = ["# Backbones of the tiny world", "", *_introduction(scores), ""]
    for name in parts:
        part = scores[name]
        lines += [
            f"## `{name}`",
            "",
            f"{_TITLES[name][0].upper()}{_TITLES[name][1:]}; {part['parameters']:,} parameters.",
            "",
        ]
        lines += [
            f"Made with seed {part['seed']} in {part['seconds']} seconds on one thread. Recipe: `{_recipe(name)}`.",
            "",
        ]
        lines += [*(_vision_table(part["scores"]) if name == "vision" else _language_tables(part["scores"])), ""]
    return "\n".join(lines)


def _introduction(scores: dict[str, Any]) -> list[str]:
    held_out = ", ".join(f"{colour} {shape}" for colour, shape in HELD_OUT)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(scores.get("versions", {}).items()))
    return [
        "Written by `python -m visualchat.tiny.pretraining`, which makes everything in this folder from nothing:",
        "no data and no weights of anyone else are used. Weights are stored in float16 and load as float32.",
        f"Made with {versions}.",
        "",
        "The vision tower learns from drawn scenes of all 30 compositions of colour and shape. The language models",
        "never meet an image: they learn from dialogues in words, likewise over all compositions. The `train` split,",
        f"for later tuning, never shows or names {len(HELD_OUT)} of them ({held_out});",
        "`unseen` dialogues are about these. A *folded caption* is a 4x4 grid of word sums laid out like an image's",
        "patches. Early in their training a small loss tells a few heads of the language models where to look",
        "(`pretraining/hints.py`). A language model's embedding and head are two equal matrices. The models of plain",
        "dialogues do not master comparisons of two images (`same`): see the tables.",
    ]


def _recipe(name: str) -> str:
    return repr(VisionRecipe() if name == "vision" else RECIPES[name])


def _vision_table(scores: dict[str, float]) -> list[str]:
    """What linear readers of the last hidden state get right on new images."""
    return [
        "What linear readers of the last hidden state get right on 2000 new images, in percent (colour, shape and",
        "cell of each patch, count of each image, presence of each composition):",
        "",
        *_table(["reader", *scores], [["right", *[_percent(value) for value in scores.values()]]]),
    ]


def _language_tables(scores: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Exact match by question type and by number of images, one row a way of reading."""
    first = next(iter(scores.values()))
    kinds, images = list(first["kind"]), list(first["images"])
    by_kind = [
        [row, _percent(s["all"]["exact"]), *[_percent(s["kind"].get(kind)) for kind in kinds]]
        for row, s in scores.items()
    ]
    by_images = [[row, *[_percent(s["images"].get(n)) for n in images]] for row, s in scores.items()]
    return [
        "Exact match of answers in percent on new dialogues; `all` and the second table leave `describe` out:",
        "",
        *_table(["images as, attention, split", "all", *kinds], by_kind),
        "",
        *_table(["images as, attention, split", *[f"{n} image{'s' * (n != '1')}" for n in images]], by_images),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]

"""`python -m visualchat.attention [KIND ...]`: what each kind of attention sees, drawn on one small dialogue."""

from __future__ import annotations

import argparse

import torch

from visualchat.attention.kinds import KINDS, AttentionKind, Modality, attention_kind
from visualchat.attention.layout import Layout, visible

TOKENS = "LIITLIIT"
"""Two images, each with its label (L) before it and other text (T) behind it."""

CONTEXTS = {
    "self": "itself alone: its output is its own value",
    "image": "its own image, in both directions",
    "label": "its own label and itself; the label sees the label alone",
    "unit": "its own label and its own image so far; the label sees the label alone",
    "text": "earlier text and itself",
    "all": "everything before it and itself",
}
SOFTMAXES = {"joint": "one softmax over all (#)", "split": "one softmax over text (t) plus one over images (i)"}


def example() -> Layout:
    """`TOKENS` as a layout of one row."""
    image = torch.tensor([[int(token == "I") for token in TOKENS]])
    units = torch.tensor([[0, 0, 0, -1, 1, 1, 1, -1]])
    return Layout(len(TOKENS), image * Modality.IMAGE, image_ids=units.masked_fill(image == 0, -1), unit_ids=units)


def drawn(kind: AttentionKind) -> str:
    """The kind's mask, a row a query: keys of one softmax by `#`, of two by `t` and `i`; `.` is not seen."""
    marks = "##" if kind.softmax == "joint" else "ti"
    lines = [f"    {TOKENS}"]
    for token, row in zip(TOKENS, visible(kind, example())[0].tolist(), strict=True):
        seen = (marks[key == "I"] if sees else "." for sees, key in zip(row, TOKENS, strict=True))
        lines.append(f"  {token} {''.join(seen)}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the grids of the kinds that are asked for, or of all."""
    parser = argparse.ArgumentParser(
        prog="python -m visualchat.attention",
        description="Draw what each kind of attention sees. Rows are queries, columns keys, of a dialogue with two "
        "images: L a label, I an image token, T other text, which always sees everything before it and itself.",
    )
    parser.add_argument("kinds", metavar="KIND", nargs="*", help=f"one of {', '.join(KINDS)}; all if none is named")
    options = parser.parse_args(arguments)
    try:
        chosen = {name: attention_kind(name) for name in options.kinds or KINDS}
    except ValueError as error:
        parser.error(str(error))
    for name, kind in chosen.items():
        print(f"{name}: an image token sees {CONTEXTS[kind.image_context]}; {SOFTMAXES[kind.softmax]}")
        print(drawn(kind), end="\n\n")


if __name__ == "__main__":
    main()

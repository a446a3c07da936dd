"""A dialogue as the model gets it: the very tokens that train, the supervised ones marked, as runs or as a page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from transformers import PreTrainedTokenizerBase

from visualchat import html_page
from visualchat.attention import Modality
from visualchat.dialogue import Dialogue
from visualchat.dialogue.encoding import IGNORE_INDEX, Encoding
from visualchat.images.decode import decode_image

Kind = Literal["text", "answer", "image"]


@dataclass(frozen=True)
class TokenRun:
    """An unbroken run of tokens of one kind.

    Attributes:
        kind: `answer` where the tokens are supervised.
        text: What they say; empty for an image.
        tokens: How many they are.
        cut: Whether they lie beyond the length limit, so that they do not train.
    """

    kind: Kind
    text: str
    tokens: int
    cut: bool


def token_runs(
    encoding: Encoding, tokenizer: PreTrainedTokenizerBase, image_seq_length: int, kept: int | None = None
) -> list[TokenRun]:
    """The tokens of a dialogue as runs.

    Args:
        encoding: Of the dialogue.
        tokenizer: Which made it.
        image_seq_length: Tokens an image takes.
        kept: Tokens that fit the length limit; None for all.
    """
    runs: list[TokenRun] = []
    count = len(encoding) if kept is None else kept

    def kind(position: int) -> tuple[Kind, bool]:
        if encoding.mm_token_type_ids[position] == Modality.IMAGE:
            return "image", position >= count
        return ("text" if encoding.labels[position] == IGNORE_INDEX else "answer"), position >= count

    for (name, cut), run in groupby(range(len(encoding)), kind):
        ids = [encoding.input_ids[position] for position in run]
        if name == "image":  # images that follow each other without a word between
            runs += [TokenRun("image", "", image_seq_length, cut)] * (len(ids) // image_seq_length)
        else:
            runs.append(TokenRun(name, str(tokenizer.decode(ids)), len(ids), cut))
    return runs


STYLE = """pre{white-space:pre-wrap;font:14px/1.5 ui-monospace,monospace}.answer{background:#d8f3dc;color:#14532d}
.cut{opacity:.35;text-decoration:line-through}img{max-width:16rem;max-height:16rem;border:1px solid #ccc}
.note{color:#888;font-size:.85em}"""


def page(dialogue: Dialogue, runs: Sequence[TokenRun], summary: str) -> str:
    """A self-contained HTML page of a dialogue's tokens with its images in their places."""
    images = iter(dialogue.images)
    parts = []
    for run in runs:
        classes = run.kind + (" cut" if run.cut else "")
        if run.kind == "image":
            source = html_page.image_source(decode_image(next(images)))
            parts.append(f"<span class='{classes}'><img src='{source}'></span>")
            parts.append(f"<span class=note> {run.tokens} tokens</span>")
        else:
            parts.append(f"<span class='{classes}'>{html.escape(run.text)}</span>")
    body = (
        f"<p class=note>{html.escape(summary)}; <span class=answer>supervised tokens</span>, "
        f"<span class=cut>beyond the limit</span></p><pre>{''.join(parts)}</pre>"
    )
    return html_page.page(dialogue.id, body, STYLE)

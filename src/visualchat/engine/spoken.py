"""What tokens say: text in pieces as tokens come, and whether a stop text stands at their end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import TextStreamer

BYTES = 4
"""The most tokens that one character takes."""


def text_of(tokenizer: Any, ids: Sequence[int], stop: Sequence[str]) -> str:
    """What tokens say, without special ones, up to the first stop text."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    ending = before(stop, text)
    return text if ending is None else ending


def has_stop(tokenizer: Any, ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the last token completed a stop text; only as many tokens as one may take are read."""
    if not stop:
        return False
    longest = max(map(len, stop))
    end = tokenizer.decode(ids[-BYTES * (longest + 1) :], skip_special_tokens=True)
    return before(stop, end) is not None


def pieces(tokenizer: Any, ids: Iterable[int]) -> Iterator[str]:
    """Text in pieces that later tokens do not change, without special tokens."""
    streamer = _Pieces(tokenizer, skip_special_tokens=True)
    for token in ids:
        streamer.put(torch.tensor([token]))
        yield from streamer.taken()
    streamer.end()
    yield from streamer.taken()


class _Pieces(TextStreamer):
    """transformers' streamer with what is ready kept."""

    def __init__(self, tokenizer: Any, **settings: Any) -> None:
        super().__init__(tokenizer, **settings)
        self._ready: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """transformers' hook."""
        self._ready.append(text)

    def taken(self) -> list[str]:
        """What became ready since it was asked last."""
        ready, self._ready = [piece for piece in self._ready if piece], []
        return ready


def before(stops: Sequence[str], text: str) -> str | None:
    """What stands before the first of some texts; None where none of them is found."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else None


def until(stops: Sequence[str], pieces: Iterable[str]) -> Iterator[str]:
    """Hand on pieces up to a stop text; what may be the beginning of one waits for the next piece."""
    waiting = ""
    for piece in pieces:
        waiting += piece
        ending = before(stops, waiting)
        if ending is not None:
            yield ending
            return
        longest = max((n for stop in stops for n in range(1, len(stop)) if waiting.endswith(stop[:n])), default=0)
        ready, waiting = waiting[: len(waiting) - longest], waiting[len(waiting) - longest :]
        if ready or not stops:
            yield ready
    if waiting:
        yield waiting

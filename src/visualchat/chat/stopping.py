"""Texts that end an answer: nothing of them is handed on, also when they come in pieces."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence


def before(stops: Sequence[str], text: str) -> str | None:
    """What stands before the first of some texts; None where none of them is found."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else None


def until(stops: Sequence[str], pieces: Iterable[str]) -> Generator[str, None, str | None]:
    """Hand on pieces up to a stop text; what may be the beginning of one waits for the next piece.

    Returns:
        All that was handed on, where a stop text was found; else None.
    """
    waiting, handed = "", ""
    for piece in pieces:
        waiting += piece
        ending = before(stops, waiting)
        if ending is not None:
            yield ending
            return handed + ending
        longest = max((n for stop in stops for n in range(1, len(stop)) if waiting.endswith(stop[:n])), default=0)
        ready, waiting = waiting[: len(waiting) - longest], waiting[len(waiting) - longest :]
        if ready or not stops:
            yield ready
            handed += ready
    if waiting:
        yield waiting
    return None

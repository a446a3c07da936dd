"""A model's answer; pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ended = Literal["stop", "length"]
"""How an answer ended: by itself, or cut at the most tokens."""


@dataclass(frozen=True)
class Answer:
    """A model's answer.

    Attributes:
        text: Its words.
        ended: How it ended.
        ids: Its tokens; with what ends an answer, if that came.
    """

    text: str
    ended: Ended
    ids: tuple[int, ...]

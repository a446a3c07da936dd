"""What a session keeps of each answered round, and how long an answer took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Round:
    """What a session keeps of an answered round.

    Attributes:
        said: The answer's tokens, with what ends it.
        end: Tokens of the conversation after it.
        held: How many of them the cache held then, if it was computed round by round.
    """

    said: list[int]
    end: int
    held: int


@dataclass(frozen=True)
class Timing:
    """How long the last answer took.

    Attributes:
        first_token: Seconds until its first token.
        tokens: How many it has.
        seconds: In all.
    """

    first_token: float
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first; None where there are none."""
        return (self.tokens - 1) / (self.seconds - self.first_token) if self.tokens > 1 else None

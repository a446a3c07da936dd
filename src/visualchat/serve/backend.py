"""What stands between the app and whatever computes answers: one engine in this process, or others elsewhere.

The app knows HTTP and nothing of models; a backend knows models and nothing of HTTP. All that passes between them can
be pickled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import Any, Protocol

from visualchat.engine import Answer
from visualchat.engine.image_store import StoreStats
from visualchat.serve.protocol import ChatRequest


@dataclass(frozen=True)
class Piece:
    """A part of an answer as it comes.

    Attributes:
        text: Later tokens do not change it.
        logprobs: Of its tokens, in OpenAI's form; None where they are not asked for.
    """

    text: str
    logprobs: tuple[dict[str, Any], ...] | None = None


Event = tuple[int, Piece | Answer]
"""The number of an answer, and a piece of it or, at its end, the whole."""


@dataclass(frozen=True)
class Warmed:
    """What became of an image that was shown before anyone asks about it.

    Attributes:
        digest: Of its pixels.
        width: In pixels.
        height: In pixels.
        tokens: That it takes in a conversation.
        known: Whether it was computed before.
        why_not_stored: Why what was computed is not kept; None where it is.
    """

    digest: str
    width: int
    height: int
    tokens: int
    known: bool
    why_not_stored: str | None


@dataclass(frozen=True)
class Figures:
    """What a backend tells for `/metrics`.

    Attributes:
        store: What is kept of images, wherever that is.
        in_hand: How many requests each replica that lives has, by its name; empty where there are no replicas.
    """

    store: StoreStats
    in_hand: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_all(cls, found: Iterable[Figures]) -> Figures:
        """Those of several backends together."""
        told = list(found)
        sums = {each.name: sum(getattr(one.store, each.name) for one in told) for each in fields(StoreStats)}
        return cls(StoreStats(**sums), {name: count for one in told for name, count in one.in_hand.items()})


class Reply(Protocol):
    """The answers to one request, on their way."""

    def events(self) -> AsyncIterator[Event]:
        """What comes, until all answers have ended.

        Raises:
            Exception: What one of them failed of.
        """
        ...

    def cancel(self) -> None:
        """Let nothing more be computed; it waits for nothing and may be called again."""
        ...


class Backend(Protocol):
    """Computes answers while it is entered (`async with`).

    Attributes:
        places: The most requests at a time.
        names: What clients call its models.
    """

    places: int
    names: tuple[str, ...]

    async def submit(self, asked: ChatRequest, scope: str) -> Reply:
        """Begin to answer a request, whose work others of the same scope may reuse.

        Raises:
            ApiError: It cannot be answered.
        """
        ...

    async def warm(self, url: str, number: int, scope: str) -> Warmed:
        """Compute an image (a data URL), as image `number` of conversations of a scope.

        Raises:
            ApiError: It cannot be read, or there is no room for the request.
        """
        ...

    async def figures(self) -> Figures:
        """What is told of it now."""
        ...

    async def __aenter__(self) -> Backend: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

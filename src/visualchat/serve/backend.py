"""What stands between the app and whatever computes answers: one engine in this process, or others elsewhere.

The app knows HTTP and nothing of models; a backend knows models and nothing of HTTP. All that passes between them can
be pickled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from visualchat.chat.image_store import StoreStats
from visualchat.engine import Answer
from visualchat.serve.protocol import ChatRequest


@dataclass(frozen=True)
class Piece:
    """A part of an answer as it comes.

    Attributes:
        text: Later tokens do not change it.
    """

    text: str


Event = tuple[int, Piece | Answer]
"""The number of an answer, and a piece of it or, at its end, the whole."""


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
    """

    places: int

    async def submit(self, asked: ChatRequest, scope: str) -> Reply:
        """Begin to answer a request, whose work others of the same scope may reuse.

        Raises:
            ApiError: It cannot be answered.
        """
        ...

    async def stats(self) -> StoreStats:
        """What is kept of images, wherever that is."""
        ...

    async def __aenter__(self) -> Backend: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

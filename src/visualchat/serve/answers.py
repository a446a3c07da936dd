"""Answers of the engine as an event loop reads them: a thread waits for each, none of them computes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from visualchat.engine import Answer, Handle

Event = tuple[int, str | Answer]
"""The number of an answer, and a piece of its text or, at its end, the whole."""


class Answers:
    """The answers to one request, as they come.

    Args:
        handles: One for each.
        readers: Has a thread for each.
        seconds: After so many reading them raises `TimeoutError`.
    """

    def __init__(self, handles: Sequence[Handle], readers: ThreadPoolExecutor, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + seconds
        self._events: asyncio.Queue[tuple[int, str | Answer | Exception]] = asyncio.Queue()
        self._open = len(handles)
        for index, handle in enumerate(handles):
            readers.submit(self._read, index, handle)

    def _read(self, index: int, handle: Handle) -> None:
        """Runs in a thread until the answer has ended."""
        try:
            for piece in handle.text():
                self._put(index, piece)
            self._put(index, handle.result())
        except Exception as error:  # for whoever reads
            self._put(index, error)

    def _put(self, index: int, event: str | Answer | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def events(self) -> AsyncIterator[Event]:
        """What comes, until all answers have ended.

        Raises:
            TimeoutError: They took too long.
            Exception: What one of them failed of.
        """
        while self._open:
            async with asyncio.timeout_at(self._deadline):
                index, event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Answer):
                self._open -= 1
            yield index, event

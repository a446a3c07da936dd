"""One engine in this process as a backend. The event loop decodes, tokenizes and computes nothing: threads do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from visualchat.chat.image_store import StoreStats
from visualchat.engine import Answer, Engine, Handle, QueueFull
from visualchat.serve.backend import Event, Piece
from visualchat.serve.conversation import engine_requests
from visualchat.serve.errors import ApiError, queue_full, stopping
from visualchat.serve.protocol import MOST_CHOICES, ChatRequest
from visualchat.serve.settings import Settings


class Local:
    """The backend around an engine, whose thread runs while it is entered.

    Args:
        engine: Answers.
        settings: What requests may ask for.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.places = engine.max_running + engine.max_waiting
        self._decoders = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "visualchat-decode")
        self._readers = ThreadPoolExecutor(self.places * MOST_CHOICES, "visualchat-read")  # started as they are needed

    async def __aenter__(self) -> Local:
        self.engine.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.engine.close)
        self._decoders.shutdown()
        self._readers.shutdown()

    async def submit(self, asked: ChatRequest, scope: str) -> Handles:
        """As `Backend` has it."""
        loop = asyncio.get_running_loop()
        return Handles(await loop.run_in_executor(self._decoders, self._submit, asked, scope), self._readers)

    async def stats(self) -> StoreStats:
        """As `Backend` has it."""
        return self.engine.store.stats

    def _submit(self, asked: ChatRequest, scope: str) -> list[Handle]:
        """Runs in a thread: hand a request to the engine."""
        handles: list[Handle] = []
        for request in engine_requests(asked, self.engine.processor, self.settings, scope):
            try:
                handles.append(self.engine.submit(request))
            except QueueFull:
                raise queue_full() from None  # the handles before it are dropped, and so cancelled
            except ValueError as error:  # our own words: too long for the model
                raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from None
            except RuntimeError:
                raise stopping() from None
        return handles


class Handles:
    """Answers of the engine as an event loop reads them: a thread waits for each, none of them computes.

    Args:
        handles: One for each answer.
        readers: Has a thread for each.
    """

    def __init__(self, handles: Sequence[Handle], readers: ThreadPoolExecutor) -> None:
        self.handles = handles
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Piece | Answer | Exception]] = asyncio.Queue()
        for index, handle in enumerate(handles):
            readers.submit(self._read, index, handle)

    def cancel(self) -> None:
        """As `Reply` has it."""
        for handle in self.handles:
            handle.cancel()

    def _read(self, index: int, handle: Handle) -> None:
        """Runs in a thread until the answer has ended."""
        try:
            for text in handle.text():
                self._put(index, Piece(text))
            self._put(index, handle.result())
        except Exception as error:  # for whoever reads
            self._put(index, error)

    def _put(self, index: int, event: Piece | Answer | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def events(self) -> AsyncIterator[Event]:
        """As `Reply` has it."""
        left = len(self.handles)
        while left:
            index, event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            left -= isinstance(event, Answer)
            yield index, event

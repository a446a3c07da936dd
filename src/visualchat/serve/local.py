"""One engine in this process as a backend. The event loop decodes, tokenizes and computes nothing: threads do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any

from PIL import Image

from visualchat.engine import Answer, Engine, Handle, NotStored, QueueFull, Request
from visualchat.engine.request import image_size
from visualchat.images.feature_store import image_key
from visualchat.serve.backend import Event, Figures, Piece, Warmed
from visualchat.serve.conversation import check_pixels, engine_requests, read_image
from visualchat.serve.errors import ApiError, queue_full, stopping
from visualchat.serve.protocol import MOST_CHOICES, ChatRequest
from visualchat.serve.settings import Settings
from visualchat.serve.vocabulary import Logprobs, Vocabulary


class Local:
    """The backend around an engine, whose thread runs while it is entered.

    Args:
        engine: Answers.
        settings: What requests may ask for.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.places = engine.max_running + engine.max_waiting
        self.names: tuple[str, ...] = (settings.name,)
        self.vocabulary = Vocabulary(engine)
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
        handles = await self._loop.run_in_executor(self._decoders, self._submit, asked, scope)
        return Handles(handles, self._readers, self._reading(asked))

    async def warm(self, url: str, number: int, scope: str) -> Warmed:
        """As `Backend` has it."""
        image, handle = await self._loop.run_in_executor(self._decoders, self._warm, url, number, scope)
        known, why = False, self.engine.why_not_stored
        if handle is not None:
            try:
                answer = await self._loop.run_in_executor(self._readers, handle.result)
                known = answer.usage.cached_tokens > 0
            except NotStored as error:
                why = str(error)
            finally:
                handle.cancel()
        tokens = image_size(self.engine.model.config)
        return Warmed(image_key(image), image.width, image.height, tokens, known, why)

    async def figures(self) -> Figures:
        """As `Backend` has it."""
        return Figures(self.engine.store.stats)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def _submit(self, asked: ChatRequest, scope: str) -> list[Handle]:
        """Runs in a thread: hand a request to the engine; where a part of it is refused, the others are cancelled."""
        if asked.n > self.places:  # to try again would never help
            raise ApiError(400, f"n is {asked.n}, and this server gives {self.places} answers at a time", param="n")
        requests = engine_requests(asked, self.engine.processor, self.vocabulary, self.settings, scope)
        handles: list[Handle] = []
        try:
            for request in requests:
                handles.append(self._hand_over(request))
        except ApiError:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    def _warm(self, url: str, number: int, scope: str) -> tuple[Image.Image, Handle | None]:
        """Runs in a thread: a decoded image, and what computes it if that can be kept."""
        place = "image_url.url"
        image = read_image(url, place)
        check_pixels(image.width * image.height, self.settings.limits, place)
        if self.engine.why_not_stored is not None:
            return image, None
        return image, self._hand_over(Request.to_know(self.engine.processor, image, number, scope=scope))

    def _hand_over(self, request: Request) -> Handle:
        try:
            return self.engine.submit(request)
        except QueueFull:
            raise queue_full() from None
        except ValueError as error:  # our own words: too long for the model
            raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from None
        except RuntimeError:
            raise stopping() from None

    def _reading(self, asked: ChatRequest) -> Reading:
        """How answers to a request are read: piece by piece, with log-probabilities if it asks for them."""
        if not asked.logprobs:
            return lambda handle: map(Piece, handle.text())
        return partial(_with_logprobs, self.engine.processor.tokenizer, self.vocabulary)


Reading = Callable[[Handle], Iterable[Piece]]


def _with_logprobs(tokenizer: Any, vocabulary: Vocabulary, handle: Handle) -> Iterator[Piece]:
    logprobs = Logprobs(handle, tokenizer, vocabulary)
    for text in handle.text():
        yield Piece(text, logprobs.behind(text))


class Handles:
    """Answers of the engine as an event loop reads them: a thread waits for each, none of them computes.

    Args:
        handles: One for each answer.
        readers: Has a thread for each.
        reading: How it is read.
    """

    def __init__(self, handles: Sequence[Handle], readers: ThreadPoolExecutor, reading: Reading) -> None:
        self.handles, self._reading = handles, reading
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
            for piece in self._reading(handle):
                self._put(index, piece)
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

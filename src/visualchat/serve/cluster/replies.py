"""Answers of replicas: when a replica is lost, another one says the same again, and what was told already is skipped.

That is sound because an answer depends on nothing but its request: it is greedy, or its sampling has a seed.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentResponseGenerator

from visualchat.engine import Answer
from visualchat.serve.backend import Event, Piece
from visualchat.serve.errors import ApiError

log = logging.getLogger(__name__)

LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)
"""What is raised when a replica, or the machine that it is on, has gone."""

MOST_REPEATS = 3
"""Of one request: one that ends the replicas it comes to shall not end them all."""

REPEATED = "a replica was lost with a request in hand, which is repeated on another one"


class RepeatedReply:
    """The answers to one request, from as many replicas as it takes.

    Args:
        ask: Sends the request to a replica.
    """

    def __init__(self, ask: Callable[[], DeploymentResponseGenerator]) -> None:
        self._ask, self._stream = ask, ask()
        self._begun = time.perf_counter()
        self._told: dict[int, list[str]] = defaultdict(list)  # pieces of each answer
        self._first: dict[int, float] = {}  # seconds to the first of them
        self._ended: set[int] = set()
        self._repeats = 0
        self._cancelled = False

    async def begin(self) -> None:
        """Wait until a replica has taken the request.

        Raises:
            ApiError: It cannot be answered.
        """
        while True:
            try:
                refused = await anext(self._stream)
            except LOST as error:
                self._repeat(error)
                continue
            except DeploymentUnavailableError:
                raise no_replica() from None
            if refused is not None:
                raise refused
            return

    async def events(self) -> AsyncIterator[Event]:
        """As `Reply` has it."""
        while True:
            seen: Counter[int] = Counter()
            try:
                async for index, event in self._stream:
                    if self._is_new(index, event, seen):
                        yield index, self._as_asked(index, event)
                return
            except LOST as error:
                self._repeat(error)
                await self.begin()

    def cancel(self) -> None:
        """As `Reply` has it."""
        self._cancelled = True
        self._stream.cancel()

    def _repeat(self, error: Exception) -> None:
        """Ask again; Ray Serve does not send it to the lost replica any more."""
        self._stream.cancel()
        if self._cancelled or self._repeats == MOST_REPEATS:
            raise error
        self._repeats += 1
        log.warning(REPEATED)
        self._stream = self._ask()

    def _is_new(self, index: int, event: Piece | Answer, seen: Counter[int]) -> bool:
        """Whether an event was not told yet; notes that it is.

        Raises:
            RuntimeError: The answer is another one than it was.
        """
        if index in self._ended:
            return False
        told = self._told[index]
        if isinstance(event, Answer):
            self._ended.add(index)
            if seen[index] < len(told):
                raise RuntimeError("an answer that was repeated on another replica ended before what was told of it")
            return True
        place = seen[index]
        seen[index] += 1
        if place < len(told):
            if told[place] != event.text:
                raise RuntimeError("an answer that was repeated on another replica is not the one that was begun")
            return False
        told.append(event.text)
        self._first.setdefault(index, time.perf_counter() - self._begun)
        return True

    def _as_asked(self, index: int, event: Piece | Answer) -> Piece | Answer:
        """An answer with the times that its client saw, where they began at another replica."""
        if self._repeats == 0 or not isinstance(event, Answer):
            return event
        first = self._first.get(index, event.first_token)
        return replace(event, first_token=first, seconds=time.perf_counter() - self._begun)


async def repeated(ask: Callable[[], Awaitable[Any]]) -> Any:
    """What a replica answers at once, from as many of them as it takes."""
    for left in reversed(range(MOST_REPEATS + 1)):
        try:
            return await ask()
        except LOST:
            if not left:
                raise
            log.warning(REPEATED)
        except DeploymentUnavailableError:
            raise no_replica() from None
    raise AssertionError("the last time returns or raises")


def no_replica() -> ApiError:
    """None is there, and none came."""
    return ApiError(
        503,
        "no replica of the model is there to answer; try again later",
        code="no_replica",
        headers={"Retry-After": "5"},
    )

"""A client's end of a request: tokens or text as they come, the answer, and the way to give it up."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from visualchat.engine.job import Job
from visualchat.engine.request import Answer, Finish, Score
from visualchat.engine.spoken import pieces, until


class Stepping(Protocol):
    """What a handle needs of an engine."""

    @property
    def runs(self) -> bool:
        """Whether a thread steps."""
        ...

    def step(self) -> bool:
        """Whether there was something to do."""
        ...


class Handle:
    """A submitted request. It may be read from any thread; one that nothing refers to any longer is cancelled.

    Where no thread of the engine steps, whoever waits does.
    """

    def __init__(self, engine: Stepping, job: Job) -> None:
        self._engine, self._job = engine, job
        weakref.finalize(self, job.end, "cancelled").atexit = False

    @property
    def finish(self) -> Finish | None:
        """Why the answer ended; None while it has not."""
        return self._job.finish

    @property
    def said(self) -> list[int]:
        """The answer's tokens so far, without waiting."""
        return list(self._job.said)

    @property
    def scores(self) -> list[Score]:
        """Of the answer's tokens so far, at least as many as `said` had; empty where the request does not ask."""
        return list(self._job.scores)

    def cancel(self) -> None:
        """Give up: no token comes any more, and the next step gives the request's place to another."""
        self._job.end("cancelled")

    def __iter__(self) -> Iterator[int]:
        """The answer's tokens from the first on, as they come.

        Raises:
            Exception: What the request failed of.
        """
        job = self._job
        for read in itertools.count():
            self._until(partial(self._has, read + 1))
            if read == len(job.said):
                break
            yield job.said[read]
        if job.error is not None:
            raise job.error

    def text(self) -> Iterator[str]:
        """The answer's text in pieces as they come, without special tokens and without a stop text.

        Raises:
            Exception: What the request failed of.
        """
        yield from until(self._job.request.stop, pieces(self._job.tokenizer, self))

    def result(self) -> Answer:
        """The answer, once it has ended.

        Raises:
            Exception: What the request failed of.
        """
        self._until(lambda: self._job.finish is not None)
        if self._job.error is not None:
            raise self._job.error
        return self._job.answer()

    def _has(self, count: int) -> bool:
        """Whether there are so many tokens, or will be no more."""
        return len(self._job.said) >= count or self._job.finish is not None

    def _until(self, ready: Callable[[], bool]) -> None:
        """Wait until something holds of the job; as no request is lost, it will."""
        job = self._job
        while not ready():
            if self._engine.runs:
                with job.changed:
                    job.changed.wait_for(lambda: ready() or not self._engine.runs)
            else:
                self._engine.step()

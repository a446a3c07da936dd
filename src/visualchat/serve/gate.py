"""Who may come in: keys, a place for each request, and what a request leaves behind when it ends, however it ends.

ASGI middleware around the whole app, so that a place is given back whether the response was sent, failed or was cut
off.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Coroutine, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from visualchat.serve.address import LOOPBACK
from visualchat.serve.backend import Reply
from visualchat.serve.errors import HUNG_UP, ApiError, hung_up, queue_full, stopping
from visualchat.serve.metrics import Metrics

COMPLETIONS = "/v1/chat/completions"
IMAGES = "/v1/images"

Result = TypeVar("Result")


@dataclass(eq=False)
class Visit:
    """A request while it is in the house.

    Attributes:
        scope: Whose what it computes is, by its key.
        replies: On their way to it; cancelled when it ends.
        cut: Why it ends before it is answered; None while it does not.
    """

    scope: str
    replies: list[Reply] = field(default_factory=list)
    cut: ApiError | None = None
    _watch: asyncio.Task[None] | None = None
    _work: asyncio.Task[Any] | None = None

    def add(self, reply: Reply) -> None:
        """End a reply when the visit does; at once, if its client hung up before."""
        self.replies.append(reply)
        if self.cut:
            self.cancel()

    @property
    def gone(self) -> bool:
        return self.cut is not None and self.cut.status == HUNG_UP

    def watch(self, receive: Receive) -> None:
        """From now on, the body has been read, its answers end when the client hangs up."""
        self._watch = asyncio.create_task(self._until_gone(receive))

    async def unless_cut(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What comes of some work, which ends when the visit does.

        Raises:
            ApiError: It did.
        """
        self._work = asyncio.create_task(work)
        if self.cut:
            self._work.cancel()
        try:
            return await self._work
        except asyncio.CancelledError:
            if self.cut:
                raise self.cut from None
            raise

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end_early(hung_up())

    def end_early(self, why: ApiError) -> None:
        """End it before it is answered."""
        self.cut = self.cut or why
        self.cancel()

    def cancel(self) -> None:
        """Let others be served."""
        if self._work is not None:
            self._work.cancel()
        for reply in self.replies:
            reply.cancel()

    def end(self) -> None:
        """Leave nothing running."""
        if self._watch is not None:
            self._watch.cancel()
        self.cancel()


class Gate:
    """Lets requests in and sees them out.

    Args:
        app: What answers them.
        keys: One must come with each request, if there are any.
        share: Whether requests of different keys share what was computed.
        places: The most requests for answers at a time.
        metrics: Count them.

    Attributes:
        open: Beginnings of paths that need no key.
        visits: Requests for answers and of images in the house.
        stopping: Whether no more of them are let in.
    """

    def __init__(self, app: FastAPI, keys: Sequence[str], share: bool, places: int, metrics: Metrics) -> None:
        self.app, self.share, self.places, self.metrics = app, share, places, metrics
        self.keys = [key.encode() for key in keys]
        self.open: tuple[str, ...] = ("/health", "/openapi.json")
        self.visits: set[Visit] = set()
        self.stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        counted = scope["path"] in (COMPLETIONS, IMAGES) and scope["method"] == "POST"
        try:
            self._check_host(_given(scope["headers"], b"host"))
            whose = "" if self._is_open(scope["path"]) else self.scope_of(_given_key(scope["headers"]))
            if not counted:
                await self.app(scope, receive, send)
                return
            with self.visit(whose) as visit:
                scope["visit"] = visit
                await self.app(scope, receive, self._noting_status(send))
        except ApiError as error:  # of our own: the app's have become responses
            if counted:
                self.metrics.requests.labels(error.status).inc()
            await error.response()(scope, receive, send)

    @contextmanager
    def visit(self, whose: str) -> Iterator[Visit]:
        """A place in the house, for a request of this scope.

        Raises:
            ApiError: There is none.
        """
        self._check_place()
        visit = Visit(whose)
        self.visits.add(visit)
        try:
            yield visit
        finally:
            visit.end()
            self.visits.discard(visit)

    def stop_now(self) -> None:
        """End all visits."""
        for visit in self.visits:
            visit.end_early(stopping())

    def scope_of(self, key: str) -> str:
        """The scope of a key.

        Raises:
            ApiError: It is not one of the server's, which has some.
        """
        if not self.keys:
            return ""
        known = [hmac.compare_digest(key.encode(), own) for own in self.keys]  # all, so that time tells nothing
        if True not in known:
            message = "a key of this server is expected in the header Authorization: Bearer KEY"
            raise ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})
        return "" if self.share else f"key {known.index(True)}"

    def _check_host(self, host: str) -> None:
        """Refuse what a web page sends that had its own name point to this machine (DNS rebinding).

        The page's name is in the header `Host`. A server that asks for keys needs no such check: the page has none.

        Raises:
            ApiError: It is another name than this machine's own, and the server asks for no key.
        """
        name = re.sub(r":\d*$", "", host).strip("[]").lower()
        if name and not self.keys and name not in LOOPBACK:
            known = ", ".join(LOOPBACK)
            message = (
                f"the header Host is {host!r:.100}: expected {known}; by another name this server answers only if it "
                "asks for keys, from VISUALCHAT_API_KEYS"
            )
            raise ApiError(421, message)

    def _is_open(self, path: str) -> bool:
        return any(path == begin or path.startswith(begin + "/") for begin in self.open)

    def _check_place(self) -> None:
        if self.stopping:
            raise stopping()
        if len(self.visits) >= self.places:
            raise queue_full()

    def _noting_status(self, send: Send) -> Send:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(message["status"]).inc()
            await send(message)

        return noted


def _given_key(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The key that came with a request; empty where none did."""
    kind, _, key = _given(headers, b"authorization").partition(" ")
    return key if kind.lower() == "bearer" else ""


def _given(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str:
    """A header; empty where there is none."""
    return next((value.decode("latin-1") for found, value in headers if found == name), "")


def visit_of(scope: MutableMapping[str, Any]) -> Visit:
    """The visit of a request that the gate let in."""
    visit = scope["visit"]
    assert isinstance(visit, Visit)
    return visit

"""Who may come in: keys, a place for each request, and what a request leaves behind when it ends, however it ends.

ASGI middleware around the whole app, so that a place is given back whether the response was sent, failed or was cut
off.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from visualchat.engine import Handle
from visualchat.serve.errors import ApiError, queue_full, stopping
from visualchat.serve.metrics import Metrics

COMPLETIONS = "/v1/chat/completions"
OPEN = ("/health",)
"""Paths that need no key."""


@dataclass(eq=False)
class Visit:
    """A request while it is in the house.

    Attributes:
        scope: Whose what it computes is, by its key.
        handles: What it asked the engine; cancelled when it ends.
        gone: Whether its client hung up.
    """

    scope: str = ""
    handles: list[Handle] = field(default_factory=list)
    gone: bool = False
    _watch: asyncio.Task[None] | None = None

    def watch(self, receive: Receive) -> None:
        """From now on, the body has been read, its answers end when the client hangs up."""
        self._watch = asyncio.create_task(self._until_gone(receive))

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self.cancel()

    def cancel(self) -> None:
        """Let the engine work for others."""
        for handle in self.handles:
            handle.cancel()

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
        visits: Requests for answers in the house.
        stopping: Whether no more of them are let in.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], share: bool, places: int, metrics: Metrics) -> None:
        self.app, self.share, self.places, self.metrics = app, share, places, metrics
        self.keys = [f"Bearer {key}".encode() for key in keys]
        self.visits: set[Visit] = set()
        self.stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = Visit()
        counted = scope["path"] == COMPLETIONS and scope["method"] == "POST"
        try:
            if scope["path"] not in OPEN:
                visit.scope = self._check_key(scope["headers"])
            if counted:
                self._check_place()
        except ApiError as error:
            if counted:
                self.metrics.requests.labels(error.status).inc()
            await error.response()(scope, receive, send)
            return
        if not counted:
            await self.app(scope, receive, send)
            return
        self.visits.add(visit)
        scope["visit"] = visit
        try:
            await self.app(scope, receive, self._noting_status(send))
        finally:
            visit.end()
            self.visits.discard(visit)

    def _check_key(self, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """The scope of a request's key."""
        if not self.keys:
            return ""
        given = next((value for name, value in headers if name == b"authorization"), b"")
        known = [hmac.compare_digest(given, key) for key in self.keys]  # all, so that time tells nothing
        if True not in known:
            message = "a key of this server is expected in the header Authorization: Bearer KEY"
            raise ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})
        return "" if self.share else f"key {known.index(True)}"

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


def visit_of(scope: MutableMapping[str, Any]) -> Visit:
    """The visit of a request that the gate let in."""
    visit = scope["visit"]
    assert isinstance(visit, Visit)
    return visit

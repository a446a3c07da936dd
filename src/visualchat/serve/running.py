"""A server in a process of its own, and its end: SIGTERM or Ctrl-C lets running answers end, a second one does not."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from visualchat.serve.gate import Gate

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Server(uvicorn.Server):
    """uvicorn's, which would close its socket at the first signal: requests then get no answer instead of 503."""

    def __init__(self, config: uvicorn.Config, gate: Gate, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.gate, self.ready = gate, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's hook."""
        await super().startup(sockets)
        if self.started:
            self.ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's hook. Once it has served nothing is left to end: a later signal would only cut off the farewell."""
        for number in SIGNALS:
            signal.signal(number, self.handle_exit)
        yield
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's hook."""
        self.should_exit = self.gate.stopping
        self.gate.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's hook."""
        if self.should_exit:
            self.gate.stop_now()
        elif self.gate.stopping and not self.gate.visits:
            self.should_exit = True
        return await super().on_tick(counter)


def serve(gate: Gate, at: socket.socket, ready: Callable[[], None]) -> None:
    """Answer requests until a signal comes and the answers that run then have ended.

    Args:
        gate: The app.
        at: A bound socket.
        ready: Called once requests are accepted.
    """
    config = uvicorn.Config(
        gate,
        http="h11",  # the one that comes with uvicorn: the same wherever the server is installed
        ws="none",
        loop="asyncio",
        log_level="error",  # a warning would tell what a client sent wrong, and to install what is not needed
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    _Server(config, gate, ready).run([at])

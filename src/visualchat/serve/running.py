"""A server in a process of its own, and its end: SIGTERM or Ctrl-C lets running answers end, a second one does not."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from visualchat.serve.gate import Gate


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

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's hook."""
        if self.gate.stopping:
            self.should_exit = self.force_exit = True
        self.gate.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's hook."""
        if self.gate.stopping and not self.gate.visits:
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
        gate, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5, loop="asyncio"
    )
    _Server(config, gate, ready).run([at])

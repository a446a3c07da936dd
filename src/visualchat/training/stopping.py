"""How training ends early, on all ranks together: asked to by a signal, or because continuing makes no sense."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

from visualchat.training.ranks import is_first_rank

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}
"""What asks a run to end; SLURM sends the second, or the third if it is told to, before it kills."""


class RunStopped(Exception):
    """Training has ended early.

    Args:
        message: Why, and what is kept.
        code: The exit code of the process.
        instead: Settings, by name, with which to continue in place of those that led here.
    """

    def __init__(self, message: str, code: int = 1, instead: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.instead = dict(instead or {})


class RankSilent(RunStopped):
    """A rank waited in vain for another, which may be the first."""


class Signals:
    """What this process was asked by signals.

    While `gentle` is set a signal is noted, for training to save and end; a second Ctrl-C, and any signal while it is
    not set, ends the process at once.
    """

    def __init__(self) -> None:
        self.received = 0
        self.gentle = False
        self.at_once: Callable[[], Any] | None = None  # what to do before an immediate end
        self._before: dict[int, Any] = {}
        self._process = 0

    def listen(self) -> None:
        """Handle the signals; again, because Lightning puts its own handlers in their place before training."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python handles signals in the main thread alone
        self._process = os.getpid()
        for number in SIGNALS:
            before = signal.signal(number, self._note)
            self._before.setdefault(number, before)

    def give_back(self) -> None:
        """Put back what was before `listen`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a data worker: its training process ends it
            return
        again = self.received == number == signal.SIGINT
        if self.gentle and not again:
            if not self.received and is_first_rank():
                os.write(2, f"\n{SIGNALS[signal.Signals(number)]}: this step is ended and saved".encode())
                os.write(2, b"; Ctrl-C again ends the run at once\n" if number == signal.SIGINT else b"\n")
            self.received = self.received or number
            return
        if is_first_rank():
            os.write(2, b"\nended at once, nothing was saved\n")
        if self.at_once:
            self.at_once()
        os._exit(128 + number)

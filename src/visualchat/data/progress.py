"""A bar for what takes long: on a terminal it moves, in a log it is a line at first and now and then another."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

T = TypeVar("T")

EVERY = 30.0
"""Seconds between two lines of a log."""


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that is told how much of `total` is done. The bar goes away with its block."""
    if not sys.stderr.isatty():
        log.info("%s", title)
        yield _lines(title, total)
        return
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


def _lines(title: str, total: int) -> Callable[[int], None]:
    """What writes how much is done into the log, if the last line is some time ago."""
    last = time.monotonic()

    def show(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            log.info("%s: %d of %d, %d %%", title, done, total, 100 * done // max(total, 1))

    return show


def watched(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """The items, with a bar of how many of `total` have been taken."""
    with bar(title, total) as show:
        for number, item in enumerate(items, start=1):
            yield item
            show(number)

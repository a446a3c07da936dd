"""A bar for what takes long before the first step: on a terminal it moves, in a log it is one line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

T = TypeVar("T")


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that is told how much of `total` is done. The bar goes away with its block."""
    if not sys.stderr.isatty():
        log.info("%s", title)
        yield lambda done: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


def watched(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """The items, with a bar of how many of `total` have been taken."""
    with bar(title, total) as show:
        for number, item in enumerate(items, start=1):
            yield item
            show(number)

"""Figures as PNG files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def figure_in(path: Path, width: float, height: float, title: str | None = None) -> Iterator[Figure]:
    """A figure to draw in, so many inches wide and high; saved at the end of the block."""
    from matplotlib.figure import Figure  # here, because commands that draw nothing load this module

    figure = Figure(figsize=(width, height), layout="constrained")
    if title is not None:
        figure.suptitle(title)
    yield figure
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)

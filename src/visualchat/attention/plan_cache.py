"""What the tokens of a batch are, and what follows from it, kept until they change: all layers of a model share it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from torch import Tensor

from visualchat.attention.kinds import AttentionKind
from visualchat.attention.layout import Layout

T = TypeVar("T")

_last: tuple[tuple[object, ...], Layout, tuple[Tensor | None, ...]] | None = None


def known_layout(name: tuple[object, ...], tensors: tuple[Tensor | None, ...], make: Callable[[], Layout]) -> Layout:
    """`make()`, or the layout that it gave for the same name and the very same tensors the last time.

    Tensors are recognised by their identity and version, so it costs little and nothing is compared.
    """
    global _last
    marks: list[object] = []
    for tensor in tensors:
        if tensor is not None:
            if tensor.is_inference():  # such tensors do not tell when they are written to
                return make()
            marks += (id(tensor), tensor._version)
        else:
            marks.append(None)
    full_name = (*name, *marks)
    kept = _last  # read once: another thread may replace it at any moment
    if kept is None or kept[0] != full_name:
        kept = (full_name, make(), tensors)  # with the tensors, so that no other takes their identity
        _last = kept
    return kept[1]


def planned(compute: Callable[..., T], kind: AttentionKind, layout: Layout, *more: Hashable) -> T:
    """`compute(kind, layout, *more)`, once for each layout."""
    name = (compute, kind, *more)
    if name not in layout.plans:
        layout.plans[name] = compute(kind, layout, *more)
    found: T = layout.plans[name]
    return found

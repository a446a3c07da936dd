"""What `generate` must know of a switched model: keywords that its `prepare_inputs_for_generation` takes and hands on.

Several features may ask for that on one model. They are kept by name and put round the model's own method anew whenever
one comes or goes, so the order in which they come and go does not matter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

Prepare = Callable[..., dict[str, Any]]
Wrapper = Callable[[Prepare], Prepare]
"""Makes one `prepare_inputs_for_generation` of another; the keywords that it names are those that it adds."""

METHOD = "prepare_inputs_for_generation"
_STORE = "_visualchat_preparation"


def add_preparation(model: nn.Module, name: str, wrapper: Wrapper) -> None:
    """Put `wrapper` round the model's method, under a name."""
    store = model.__dict__.setdefault(_STORE, {"before": model.__dict__.get(METHOD), "wrappers": {}})
    store["wrappers"][name] = wrapper
    _rebuild(model)


def remove_preparation(model: nn.Module, name: str) -> None:
    """Take the wrapper of that name away."""
    del model.__dict__[_STORE]["wrappers"][name]
    _rebuild(model)


def _rebuild(model: nn.Module) -> None:
    """The model's own method with all wrappers round it, on the instance; past nn.Module's book-keeping."""
    store = model.__dict__[_STORE]
    model.__dict__.pop(METHOD, None)
    if store["before"] is not None:
        model.__dict__[METHOD] = store["before"]
    if not store["wrappers"]:
        del model.__dict__[_STORE]
        return
    prepare: Prepare = getattr(model, METHOD)
    for _, wrapper in sorted(store["wrappers"].items()):
        prepare = _signed(wrapper(prepare), prepare)
    model.__dict__[METHOD] = prepare


def _signed(prepared: Prepare, own: Prepare) -> Prepare:
    """`prepared` with the signature of `own`, its keywords added: `generate` refuses what it does not find there."""
    kinds = inspect.Parameter
    before = inspect.signature(own).parameters.values()
    names = {p.name for p in before}
    new = [
        p
        for p in inspect.signature(prepared).parameters.values()
        if p.kind is kinds.KEYWORD_ONLY and p.name not in names
    ]
    others = [p for p in before if p.kind is not kinds.VAR_KEYWORD]
    catch_all = [p for p in before if p.kind is kinds.VAR_KEYWORD]
    prepared.__signature__ = inspect.Signature([*others, *new, *catch_all])  # type: ignore[attr-defined]
    return prepared

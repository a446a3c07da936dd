"""What a feature changes on a model of transformers, under one name: forward hooks, and what `generate` must know.

`generate` hands a model only the keywords that its `prepare_inputs_for_generation` names, so a feature with keywords of
its own wraps that method. Features are kept by name and put round the model's own method again whenever one comes or
goes, so the order in which they come and go does not matter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

Prepare = Callable[..., dict[str, Any]]
METHOD = "prepare_inputs_for_generation"
_STORE = "_visualchat_patches"


@dataclass(frozen=True)
class Patch:
    """One feature on one model.

    Attributes:
        handles: Of its hooks.
        wrapper: Makes one `prepare_inputs_for_generation` of another; the keywords that it names are those it adds.
        before: What undoing the feature needs beyond that.
    """

    handles: tuple[RemovableHandle, ...]
    wrapper: Callable[[Prepare], Prepare]
    before: Any = None


def add_patch(model: nn.Module, name: str, patch: Patch) -> None:
    """Keep a feature under a name, and put its wrapper round the model's method."""
    # Past nn.Module's book-keeping, which is for parameters and modules.
    store = model.__dict__.setdefault(_STORE, {"method": model.__dict__.get(METHOD), "patches": {}})
    store["patches"][name] = patch
    _rebuild(model)


def has_patch(model: nn.Module, name: str) -> bool:
    """Whether the model has the feature of that name."""
    return name in model.__dict__.get(_STORE, {"patches": ()})["patches"]


def remove_patch(model: nn.Module, name: str) -> Patch:
    """Take the hooks and the wrapper of a feature away."""
    patch: Patch = model.__dict__[_STORE]["patches"].pop(name)
    for handle in patch.handles:
        handle.remove()
    _rebuild(model)
    return patch


def _rebuild(model: nn.Module) -> None:
    """The model's own method with all wrappers round it, on the instance."""
    store = model.__dict__[_STORE]
    model.__dict__.pop(METHOD, None)
    if store["method"] is not None:
        model.__dict__[METHOD] = store["method"]
    if not store["patches"]:
        del model.__dict__[_STORE]
        return
    prepare: Prepare = getattr(model, METHOD)
    for _, patch in sorted(store["patches"].items()):
        prepare = _signed(patch.wrapper(prepare), prepare)
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

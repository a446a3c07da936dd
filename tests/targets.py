"""The targets of a configuration: what `_target_` names must exist and take the arguments beside it."""

import inspect
from collections.abc import Iterator
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf


def targets(node: Any) -> Iterator[DictConfig]:
    """Every mapping with a `_target_`, at any depth."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield node
        for key in node:
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                yield from targets(node[key])
    elif isinstance(node, ListConfig):
        for item in node:
            yield from targets(item)


def check_targets(config: DictConfig) -> int:
    """Fail unless every target exists and takes the arguments beside it; returns how many there are."""
    found = 0
    for key in config:
        if key == "hydra":
            continue
        for node in targets(config[key]) if isinstance(config[key], DictConfig) else ():
            target = get_object(node._target_)
            given = {name for name in node if name not in ("_target_", "_partial_", "_convert_")}
            parameters = inspect.signature(target).parameters
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
                assert given <= set(parameters), f"{node._target_} takes no {given - set(parameters)}"
            found += 1
    return found

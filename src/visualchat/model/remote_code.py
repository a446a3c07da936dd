"""Folders and Hub repositories that bring code of their own: it is never run, and no question is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from visualchat.model.damage import naming_damage


def load_without_code(load: Callable[..., Any], path: str | Path, **keywords: Any) -> Any:
    """What a `from_pretrained` of transformers makes of a path, with transformers' own classes only.

    Raises:
        ValueError: The path can only be loaded by code that it brings (`auto_map`), or a file of it is damaged.
    """
    try:
        with naming_damage(path):
            return load(path, **{"trust_remote_code": False, **keywords})
    except ValueError as error:
        if "contains custom code" not in str(error) and "references custom code" not in str(error):
            raise
        raise ValueError(
            f"{path} can only be loaded by code that it brings itself (auto_map in its configuration), which is never "
            "run: name a model that transformers knows"
        ) from None

"""Files of a saved model that cannot be read: the libraries below say what is wrong, not where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


@contextmanager
def naming_damage(path: Any) -> Iterator[None]:
    """Name the file of a folder that could not be read.

    Args:
        path: The folder, or a repository of the Hub, which is named as a whole.

    Raises:
        ValueError: A file of weights is cut short or a file of JSON is broken.
    """
    try:
        yield
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{_damaged(path)} is damaged: {error}; put a sound copy in its place") from error


def _damaged(path: Any) -> Any:
    """The first file of a folder that cannot be read; the path itself where there is none."""
    for file in sorted(Path(path).glob("*")) if isinstance(path, str | Path) else ():
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass
            elif file.suffix == ".json":
                json.loads(file.read_bytes())
        except (SafetensorError, ValueError):
            return file
    return path

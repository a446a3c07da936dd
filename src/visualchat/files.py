"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, *, synced: bool = True) -> Iterator[Path]:
    """A draft beside `path` that takes its name when the block ends well, and is removed when it does not.

    Args:
        path: The file to write or to replace; its folder exists.
        synced: Wait until the disk has the content before it gets its name. Without, a power cut may leave a torn file,
            so its reader must be able to tell.

    Yields:
        The draft, for the block to write.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        yield draft
        if synced:
            with draft.open("rb") as file:
                os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def remove_drafts(folder: Path) -> None:
    """Remove the drafts that processes which were killed have left in a folder and those below it.

    Args:
        folder: No process writes there.
    """
    for path in folder.rglob(".*"):
        if re.fullmatch(r"\..+\.\d+\.[0-9a-f]{8}", path.name):
            path.unlink()

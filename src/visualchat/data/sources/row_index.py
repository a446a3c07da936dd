"""What a first reading of a large source found, kept so that later starts need not read it again.

The index is valid as long as nothing changed that it was made of: the annotations (size and time), the folders in which
images were looked up (time), the source's settings, and the readers' own code. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from visualchat.data.sources.root import DataRoot
from visualchat.data.sources.rows import Entries, Reason, RowError, Tally
from visualchat.data.sources.tables import SpanTable, Table
from visualchat.files import whole_file

log = logging.getLogger(__name__)

FOLDER = ".visualchat"
_FRESH = 2_000_000_000  # ns: a file that changed just now may change again without a new time


@cache
def _code() -> str:
    """A hash of the code that reads rows."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *here.parent.glob("*.py"), *here.parent.parent.glob("*.py")])
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


class RowIndex:
    """The index of one source, in the data root's `.visualchat`, or in the user's cache where the root is read-only.

    Args:
        root: The data root.
        tables: The source's files.
        settings: All that decides what rows become.
    """

    def __init__(self, root: DataRoot, tables: Sequence[Table], settings: str) -> None:
        self.root, self.tables = root, tables
        paths = [str(table.path.resolve()) for table in tables]
        self.about = json.dumps([settings, paths, _code()])
        self.stamps = [[table.path.stat().st_size, table.path.stat().st_mtime_ns] for table in tables]
        self.fresh = any(time.time_ns() - changed < _FRESH for _, changed in self.stamps)
        name = f"rows-{hashlib.sha256(json.dumps([settings, paths]).encode()).hexdigest()[:16]}"
        self.path = _writable(root.path) / name

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """One process makes the index while others wait; False where nothing can be written: each reads for itself."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            guard = FileLock(self.path.with_suffix(".lock"))
            guard.acquire()
        except OSError as error:
            log.info("no index of rows is kept: %s", error)
            yield False
            return
        try:
            yield True
        finally:
            guard.release()

    def load(self, source: str) -> Tally | None:
        """What an earlier reading found; None if there is none or something changed. The tables learn their places."""
        try:
            with safe_open(self.path.with_suffix(".index"), framework="np") as file:
                notes = json.loads(file.metadata()["notes"])
                current = notes["about"] == self.about and notes["files"] == self.stamps
                if not current or any(self.root.changed(folder) != then for folder, then in notes["folders"]):
                    return None
                entries = Entries.from_arrays({name: file.get_tensor(name) for name in Entries().arrays()})
                for number, table in enumerate(self.tables):
                    if isinstance(table, SpanTable):
                        table.spans = file.get_tensor(f"spans{number}")
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        errors = [RowError(source, row, Reason(reason), detail) for row, reason, detail in notes["errors"]]
        counts = Counter(notes["left_out"]), Counter(notes["notes"])
        return Tally(source, notes["rows"], entries, errors, *counts, notes["digest"])

    def save(self, tally: Tally) -> None:
        """Keep the entries of a reading; a disk that cannot be written to is not an error."""
        assert isinstance(tally.entries, Entries)
        folders = list(self.root.seen.items())
        lost = self.root.links and any(error.reason in (Reason.MISSING_FILE, Reason.PATH) for error in tally.errors)
        if lost or self.fresh or any(then is not None and time.time_ns() - then < _FRESH for _, then in folders):
            return
        notes = {
            **{"about": self.about, "files": self.stamps, "folders": folders},
            **{"rows": tally.rows, "left_out": tally.left_out, "notes": tally.notes, "digest": tally.digest},
            "errors": [(error.row, str(error.reason), error.detail) for error in tally.errors],
        }
        arrays: dict[str, Any] = tally.entries.arrays()
        for number, table in enumerate(self.tables):
            if isinstance(table, SpanTable):
                arrays[f"spans{number}"] = table.spans
        try:
            with whole_file(self.path.with_suffix(".index")) as draft:
                save_file(arrays, draft, {"notes": json.dumps(notes)})
        except (OSError, SafetensorError) as error:
            log.info("no index of rows is kept: %s", error)


def _writable(root: Path) -> Path:
    """The folder of indexes."""
    if os.access(root, os.W_OK):
        return root / FOLDER
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visualchat"

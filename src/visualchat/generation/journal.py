"""Files that grow by whole steps, so that a run that was killed continues where it was and leaves the same files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visualchat.files import remove_drafts, whole_file

JOURNAL = "journal.json"


class Journal:
    """What a run has written so far.

    After every step `journal.json` says how long each file is. What a killed run wrote behind that is cut off, and its
    drafts of other files are removed.

    Args:
        folder: The run's, which exists; no other process writes there.
        settings: All that decides what the run writes, as JSON can hold it.

    Attributes:
        done: Steps that are written.

    Raises:
        ValueError: The folder holds a run of other settings, or its files were changed.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.done = 0
        self._settings: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        remove_drafts(folder)
        path = folder / JOURNAL
        if path.is_file():
            self._load(path)
        self.require(settings)

    def _load(self, path: Path) -> None:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            self.done, self._settings, self._sizes = record["done"], record["settings"], record["sizes"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: remove its folder, or name another one") from error
        for name, size in self._sizes.items():
            file = self.folder / name
            if not file.is_file() or file.stat().st_size < size:
                raise ValueError(f"{file} is shorter than it was written: remove its folder, or name another one")
            os.truncate(file, size)

    def require(self, settings: Mapping[str, Any]) -> None:
        """Note settings, which must be those of the run's beginning.

        Raises:
            ValueError: Some differ; each is named.
        """
        settings = json.loads(json.dumps(settings))
        known = {name: self._settings[name] for name in settings if name in self._settings}
        different = [
            f"{name}={settings[name]} (was {value})" for name, value in known.items() if value != settings[name]
        ]
        if different:
            raise ValueError(
                f"{os.path.relpath(self.folder)} holds a run of other settings: {'; '.join(different)}\n"
                "type the same settings to continue it, or name another folder with hydra.run.dir="
            )
        self._settings |= settings

    def append(self, texts: Mapping[str, str]) -> None:
        """Write a step: text to the ends of files, by their names."""
        for name, text in texts.items():
            begun = name in self._sizes  # else what is there was not finished
            with (self.folder / name).open("ab" if begun else "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
                self._sizes[name] = file.tell()
        self.done += 1
        record = {"done": self.done, "sizes": self._sizes, "settings": self._settings}
        with whole_file(self.folder / JOURNAL) as draft:
            draft.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

"""Paths that annotations name, held under the data root: no "..", no absolute paths, no links that lead out."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from visualchat.data.sources.base import Reason, RejectedRowError


class DataRoot:
    """The folder under which a source may read.

    Folders are listed once, so that checking a hundred thousand names costs no hundred thousand look-ups.

    Args:
        path: The folder.

    Raises:
        ValueError: It does not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"data root {str(path)!r} is no folder")
        self._listed: dict[str, dict[str, bool]] = {}

    @cached_property
    def _real(self) -> Path:
        return self.path.resolve()

    def file(self, name: str) -> Path:
        """The file of that name, which exists under the root.

        Raises:
            RejectedRowError: The name leads out of the root, or there is no such file.
        """
        relative = self._relative(name)
        folder, _, last = relative.rpartition("/")
        entries = self._entries(folder)
        if last not in entries:
            raise RejectedRowError(Reason.MISSING_FILE, f"{relative!r} does not exist under the data root")
        path = self.path / relative
        if entries[last]:  # a link
            if not path.resolve().is_relative_to(self._real):
                raise RejectedRowError(Reason.PATH, f"{name!r} is a link that leads out of the data root")
            if not path.is_file():
                raise RejectedRowError(Reason.MISSING_FILE, f"{relative!r} is a link to nothing")
        return path

    def annotation(self, name: str) -> Path:
        """A file that a source cannot do without.

        Raises:
            ValueError: The name leads out of the root, or there is no such file.
        """
        try:
            return self.file(name)
        except RejectedRowError as error:
            raise ValueError(f"annotations: {error.detail}") from error

    def first(self, *names: str) -> Path | None:
        """The first of these that exists; a name that ends in "/" stands for a folder of Parquet files."""
        for name in names:
            try:
                return self._folder(name) if name.endswith("/") else self.file(name)
            except RejectedRowError as error:
                if error.reason is not Reason.MISSING_FILE:
                    raise ValueError(str(error)) from error
        return None

    def _folder(self, name: str) -> Path:
        path = self.path / self._relative(name)
        if not path.is_dir() or not path.resolve().is_relative_to(self._real):
            raise RejectedRowError(Reason.MISSING_FILE, f"folder {name!r} does not exist under the data root")
        return path

    def identity(self, path: Path) -> str:
        """The path from the root on, the same on every machine."""
        return path.relative_to(self.path).as_posix()

    def _relative(self, name: str) -> str:
        if not name or "\0" in name:
            raise RejectedRowError(Reason.PATH, f"{name!r} is no file name")
        plain = PurePosixPath(name.replace("\\", "/"))
        if plain.is_absolute() or PureWindowsPath(name).drive or ".." in plain.parts:
            raise RejectedRowError(
                Reason.PATH, f"{name!r} must be relative to the data root and stay in it, without '..'"
            )
        return plain.as_posix()

    def _entries(self, folder: str) -> dict[str, bool]:
        """The files of a folder, each with whether it is a link."""
        if folder not in self._listed:
            found: dict[str, bool] = {}
            path = self.path / folder
            if path.is_dir():
                if not path.resolve().is_relative_to(self._real):
                    raise RejectedRowError(Reason.PATH, f"folder {folder!r} is a link that leads out of the data root")
                with os.scandir(path) as entries:
                    found = {e.name: e.is_symlink() for e in entries if e.is_symlink() or e.is_file()}
            self._listed[folder] = found
        return self._listed[folder]

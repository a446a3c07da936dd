"""Paths that annotations name, held under the data root: no "..", no absolute paths, no links that lead out."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from visualchat.data.sources.rows import Reason, RejectedRowError


class DataRoot:
    """The folder under which a source may read.

    While all rows are read (`listing`), folders are listed once, so that checking a hundred thousand names costs no
    hundred thousand look-ups.

    Args:
        path: The folder.

    Attributes:
        seen: Of each folder that was asked for in a `listing` the time of its last change; None where it is missing.
        links: Whether a link was met, of which no folder's time tells whether it still leads somewhere.

    Raises:
        ValueError: It does not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"data root {str(path)!r} is not a folder")
        self._listed: dict[str, dict[str, bool]] | None = None
        self.seen: dict[str, int | None] = {}
        self.links = False
        self._prefix = str(self.path / "_")[:-1]  # joined to a name as text, for a Path costs as much as reading a row

    @contextmanager
    def listing(self) -> Iterator[None]:
        """Within, folders are listed when they are first asked for, and then taken not to change."""
        self._listed, self.seen = {}, {}
        try:
            yield
        finally:
            self._listed = None

    def changed(self, folder: str) -> int | None:
        """When a folder's list of files last changed; None where it is missing."""
        try:
            return (self.path / folder).stat().st_mtime_ns
        except OSError:
            return None

    @cached_property
    def _real(self) -> Path:
        return self.path.resolve()

    def file(self, name: str) -> Path:
        """The file of that name, which exists under the root.

        Raises:
            RejectedRowError: The name leads out of the root, or there is no such file.
        """
        return Path(self._prefix + self.check(name))

    def check(self, name: str) -> str:
        """The identity of the file of that name, which exists under the root.

        Raises:
            RejectedRowError: The name leads out of the root, or there is no such file.
        """
        relative = self._relative(name)
        link = self._kind(relative)
        if link is None:
            raise RejectedRowError(Reason.MISSING_FILE, f"{relative!r} does not exist under the data root")
        if link:
            path = self.path / relative
            self.links = True
            if not path.resolve().is_relative_to(self._real):
                raise RejectedRowError(Reason.PATH, f"{name!r} is a link that leads out of the data root")
            if not path.is_file():
                raise RejectedRowError(Reason.MISSING_FILE, f"{relative!r} is a link to nothing")
        return relative

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

    def folder(self, name: str) -> Path:
        """The folder of that name.

        Raises:
            ValueError: The name leads out of the root, or there is no such folder.
        """
        try:
            return self._folder(name)
        except RejectedRowError as error:
            raise ValueError(error.detail) from error

    def _folder(self, name: str) -> Path:
        path = self.path / self._relative(name)
        if not path.is_dir() or not path.resolve().is_relative_to(self._real):
            raise RejectedRowError(Reason.MISSING_FILE, f"folder {name!r} does not exist under the data root")
        return path

    def identity(self, path: Path) -> str:
        """The path from the root on, the same on every machine."""
        name = str(path)
        assert name.startswith(self._prefix), f"{name} is not under {self._prefix}"
        return name[len(self._prefix) :].replace(os.sep, "/")

    def _relative(self, name: str) -> str:
        if not name or "\0" in name:
            raise RejectedRowError(Reason.PATH, f"{name!r} is not a file name")
        if _is_plain(name):
            return name
        plain = PurePosixPath(name.replace("\\", "/"))
        if plain.is_absolute() or PureWindowsPath(name).drive or ".." in plain.parts:
            raise RejectedRowError(
                Reason.PATH, f"{name!r} must be relative to the data root and stay in it, without '..'"
            )
        return plain.as_posix()

    def _kind(self, relative: str) -> bool | None:
        """Whether a file is a link; None where there is no file of that name."""
        folder, _, last = relative.rpartition("/")
        if self._listed is not None:
            return self._entries(folder, self._listed).get(last)
        self._check_folder(folder)
        try:
            mode = os.lstat(self._prefix + relative).st_mode
        except (OSError, ValueError):
            return None
        return stat.S_ISLNK(mode) if stat.S_ISREG(mode) or stat.S_ISLNK(mode) else None

    def _entries(self, folder: str, listed: dict[str, dict[str, bool]]) -> dict[str, bool]:
        """The files of a folder, each with whether it is a link."""
        if folder not in listed:
            self.seen[folder] = self.changed(folder)
            files: dict[str, bool] = {}
            if self._check_folder(folder):
                with os.scandir(self.path / folder) as entries:
                    files = {e.name: e.is_symlink() for e in entries if e.is_symlink() or e.is_file()}
            listed[folder] = files
        return listed[folder]

    def _check_folder(self, folder: str) -> bool:
        """Whether there is a folder of that name, which must not lead out of the root."""
        if folder not in self._folders:
            path = self.path / folder
            if not path.is_dir():
                return False
            if not path.resolve().is_relative_to(self._real):
                raise RejectedRowError(Reason.PATH, f"folder {folder!r} is a link that leads out of the data root")
            self._folders.add(folder)
        return True

    @cached_property
    def _folders(self) -> set[str]:
        return set()


def names(files: str | Sequence[str]) -> tuple[str, ...]:
    """The names of one file or several."""
    return (files,) if isinstance(files, str) else tuple(files)


def _is_plain(name: str) -> bool:
    """Whether a name is surely relative, without turns, and spelt as it is on disk."""
    odd = "\\" in name or ":" in name or "//" in name or "./" in name
    return not odd and name[0] not in "/." and name[-1] not in "/."

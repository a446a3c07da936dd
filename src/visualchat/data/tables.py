"""Rows on disk: JSON files, JSON Lines and Parquet, each opened so that a mistake names its file and place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_BATCH = 64  # rows of a Parquet file read at a time


class Pairs(dict[str, Any]):
    """A JSON object some of whose names occur again; `again` holds the later entries, which JSON readers drop."""

    again: list[tuple[str, Any]]


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    first: Pairs = Pairs()
    first.again = []
    for name, value in pairs:
        if name in first:
            first.again.append((name, value))
        else:
            first[name] = value
    return first


def load_json(path: Path, *, find_repeated: bool = False) -> Any:
    """A whole JSON file.

    Args:
        path: The file.
        find_repeated: Give objects with a repeated name as `Pairs`, where the first entry counts.

    Raises:
        ValueError: It is missing or no JSON; the place is named.
    """
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_pairs if find_repeated else None)
    except OSError as error:
        raise ValueError(f"file {path.name} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"file {path.name} is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}; "
            "is the download complete?"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"file {path.name} is not valid JSON: {error}") from error


class JsonLines(Sequence[bytes]):
    """The lines of a file that are not blank, each read when it is asked for; only their places are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: list[int] = []
        self.numbers: list[int] = []
        at = 0
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    self.places.append(at)
                    self.numbers.append(number)
                at += len(line)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        with self.path.open("rb") as stream:
            stream.seek(self.places[index])
            return stream.readline()

    def __iter__(self) -> Iterator[bytes]:
        """All lines in one pass."""
        with self.path.open("rb") as stream:
            for line in stream:
                if line.strip():
                    yield line


def parquet_file(path: Path) -> Any:
    """An opened Parquet file (`pyarrow.parquet.ParquetFile`).

    Raises:
        ValueError: pyarrow is missing, or the file is missing or no Parquet.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError(f"reading {path.name} needs the package pyarrow: pip install pyarrow") from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise ValueError(f"file {path.name} cannot be read as Parquet: {error}") from error


def parquet_rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The rows of Parquet files, a few at a time."""
    for path in paths:
        with parquet_file(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from batch.to_pylist()


class ParquetTable(Sequence[dict[str, Any]]):
    """The rows of Parquet files; one row group is held at a time, so neighbours are quick and memory is bounded."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.groups: list[tuple[int, int, int]] = []  # first row, file, row group
        self._count = 0
        for number, path in enumerate(self.paths):
            with parquet_file(path) as file:
                for group in range(file.num_row_groups):
                    self.groups.append((self._count, number, group))
                    self._count += file.metadata.row_group(group).num_rows
        self._held: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(f"row {index} is out of range for {self._count} rows")
        low, high = 0, len(self.groups)
        while high - low > 1:  # the last group that begins at or before the row
            middle = (low + high) // 2
            low, high = (middle, high) if self.groups[middle][0] <= index else (low, middle)
        first, number, group = self.groups[low]
        if self._held is None or self._held[0] != low:
            with parquet_file(self.paths[number]) as file:
                self._held = (low, file.read_row_group(group))
        return self._held[1].slice(index - first, 1).to_pylist()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All rows in one pass."""
        return parquet_rows(self.paths)

"""Rows on disk: JSON lists, JSON Lines, CSV and Parquet, each opened so that a mistake names its file and place.

A table is read through once (`scan`), which notes where each row lies; afterwards any row is read alone. So a million
rows cost no more memory than their places.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visualchat.data.sources.json_text import BrokenRow, JsonText, load_json, parse_json

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_BATCH = 64  # rows of a Parquet file read at a time


class Scanned(NamedTuple):
    """One row of a first pass.

    Attributes:
        raw: Its bytes, the same as long as its content is.
        value: The row.
        number: Its line or number, from 1, as an editor shows it.
        read: Bytes of the file that are behind it.
    """

    raw: bytes
    value: Any
    number: int
    read: int


class Table(Sequence[Any], ABC):
    """The rows of one file."""

    unit = "row"
    """What a row's number counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def scan(self) -> Iterator[Scanned]:
        """Every row, in one pass."""

    def number(self, index: int) -> int:
        """The number, from 1, under which an editor shows row `index`."""
        return index + 1


class SpanTable(Table):
    """A table whose rows are stretches of a file.

    Attributes:
        spans: (N, 3): of each row the first byte, the last byte + 1, and its number; None before the first pass.
    """

    spans: NDArray[np.uint64] | None = None

    @abstractmethod
    def _read(self, stream: BinaryIO) -> Iterator[tuple[int, int, int, bytes, Any]]:
        """Of each row the first byte, the last + 1, its number, its bytes, and the row."""

    @abstractmethod
    def _parse(self, raw: bytes) -> Any:
        """The row of these bytes."""

    def _stream(self) -> BinaryIO:
        return self.path.open("rb")

    def scan(self) -> Iterator[Scanned]:
        """Every row, in one pass; afterwards the spans of all are known."""
        spans = array("Q")
        with self._stream() as stream:
            for start, stop, number, raw, value in self._read(stream):
                spans.extend((start, stop, number))
                yield Scanned(raw, value, number, stop)
        self.spans = np.frombuffer(spans, np.uint64).reshape(-1, 3) if spans else np.empty((0, 3), np.uint64)

    @property
    def _places(self) -> NDArray[np.uint64]:
        if self.spans is None:
            for _ in self.scan():
                pass
        assert self.spans is not None
        return self.spans

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        start, stop, _ = map(int, self._places[index])
        with self._stream() as stream:
            stream.seek(start)
            return self._parse(stream.read(stop - start))

    def number(self, index: int) -> int:
        """The number, from 1, under which an editor shows row `index`."""
        return int(self._places[index][2])


class JsonLines(SpanTable):
    """A JSON value a line; blank lines are passed over. A file that ends in .gz is unpacked into memory."""

    unit = "line"
    _unpacked: bytes | None = None

    def _stream(self) -> BinaryIO:
        if self.path.suffix != ".gz":
            return super()._stream()
        if self._unpacked is None:
            try:
                self._unpacked = gzip.decompress(self.path.read_bytes())
            except (OSError, EOFError) as error:
                raise ValueError(
                    f"file {self.path.name} is not valid gzip: {error}; is the download complete?"
                ) from error
        return io.BytesIO(self._unpacked)

    def _read(self, stream: BinaryIO) -> Iterator[tuple[int, int, int, bytes, Any]]:
        at = 0
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield at, at + len(line), number, line, self._parse(line)
            at += len(line)

    def _parse(self, raw: bytes) -> Any:
        return parse_json(raw)


class JsonList(SpanTable):
    """The entries of one JSON list, which is never held whole."""

    def _read(self, stream: BinaryIO) -> Iterator[tuple[int, int, int, bytes, Any]]:
        try:
            yield from self._entries(stream)
        except (ValueError, RecursionError) as error:
            content = load_json(self.path)  # names the position
            if not isinstance(content, list):
                raise _no_list(self.path, content) from None
            raise ValueError(f"file {self.path.name} is not valid JSON: {error}") from error

    def _entries(self, stream: BinaryIO) -> Iterator[tuple[int, int, int, bytes, Any]]:
        text = JsonText(stream)
        text.expect("[")
        number = 0
        while text.next_is_not("]"):
            if number:
                text.expect(",")
            number += 1
            start, raw, value = text.value()
            yield start, start + len(raw), number, raw, value
        text.end()

    def _parse(self, raw: bytes) -> Any:
        return parse_json(raw)


class CsvTable(SpanTable):
    """The rows of a CSV or TSV file under a line of column names, as mappings of text; cells may hold line breaks.

    Between cells is what its name says, a comma or a tabulator; where that would make the first line one name alone,
    which no table of ours can be, whichever of comma, semicolon and tabulator parts it into most.

    Args:
        path: The file, UTF-8, its name ending in .csv or .tsv.

    Attributes:
        columns: The names in the first line.

    Raises:
        ValueError: The name ends otherwise, the file is empty, no UTF-8 or has line ends of another kind, or two
            columns have one name.
    """

    unit = "line"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if (ending := path.suffix.lower()) not in _SEPARATORS:
            raise ValueError(f"file {path.name}: expected a name that ends in {' or '.join(_SEPARATORS)}")
        self._check_text()
        self.separator = _SEPARATORS[ending]
        if len(self._head()) == 1:
            self.separator = max((*_SEPARATORS.values(), ";"), key=self._names_between)
        self.columns = self._head()
        if twice := sorted({name for name in self.columns if self.columns.count(name) > 1}):
            raise ValueError(
                f"file {path.name}: two columns are called {twice[0]!r}; the columns are {', '.join(self.columns)}; "
                "give each a name of its own"
            )

    def _check_text(self) -> None:
        """Refuse a file whose first line cannot be read as it is meant."""
        with self._stream() as stream:
            line = stream.readline()
        if not line.strip():
            raise ValueError(f"file {self.path.name} is empty or begins with a blank line, expected column names")
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(f"file {self.path.name} is UTF-16; save it as UTF-8 (in Excel: CSV UTF-8)")
        try:
            line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"file {self.path.name}, line 1: not UTF-8 ({error.reason}); save it as UTF-8") from error
        if b"\r" in line.removesuffix(b"\n").removesuffix(b"\r"):
            raise ValueError(f"file {self.path.name}: its lines end in a bare carriage return; save it with line feeds")

    def _head(self) -> list[str]:
        with self._stream() as stream:
            return [name.strip() for name in next(self._records(stream))[4]]

    def _names_between(self, separator: str) -> int:
        """How many columns the first line names with this between them."""
        self.separator = separator
        return len(self._head())

    def _records(self, stream: BinaryIO) -> Iterator[tuple[int, int, int, bytes, list[str]]]:
        taken: list[bytes] = []

        def lines() -> Iterator[str]:
            for line in stream:
                taken.append(line)
                yield line.decode("utf-8-sig" if len(taken) == 1 and not at else "utf-8", "replace")

        at, number = 0, 1
        try:
            for cells in csv.reader(lines(), delimiter=self.separator, strict=True):
                raw = b"".join(taken)
                yield at, at + len(raw), number, raw, cells
                at, number = at + len(raw), number + len(taken)
                taken.clear()
        except csv.Error as error:
            raise ValueError(
                f"file {self.path.name}, line {number}: a quoted cell that begins here does not end as it should "
                f'({error}); inside quotes write " twice'
            ) from error

    def _read(self, stream: BinaryIO) -> Iterator[tuple[int, int, int, bytes, Any]]:
        for place, (start, stop, number, raw, cells) in enumerate(self._records(stream)):
            if place and any(cell.strip() for cell in cells):
                yield start, stop, number, raw, self._row(raw, cells)

    def _parse(self, raw: bytes) -> Any:
        return self._row(raw, next(self._records(io.BytesIO(raw)))[4])

    def _row(self, raw: bytes, cells: list[str]) -> Any:
        try:
            raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            return BrokenRow(f"not UTF-8 ({error.reason}); save the file as UTF-8", is_json=False)
        if len(cells) != len(self.columns):
            detail = f"{len(cells)} cells, but {len(self.columns)} columns ({', '.join(self.columns)})"
            return BrokenRow(detail, is_json=False)
        return dict(zip(self.columns, cells, strict=True))


class HeldTable(Table):
    """Rows that are in memory already."""

    def __init__(self, path: Path, rows: Sequence[Any]) -> None:
        super().__init__(path)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def scan(self) -> Iterator[Scanned]:
        """Every row."""
        return (Scanned(row_bytes(row), row, number, 0) for number, row in enumerate(self.rows, start=1))


def json_list(path: Path) -> Table:
    """The rows of a file that holds one JSON list.

    Raises:
        ValueError: Now or on first use: the file is missing, no JSON, or holds no list.
    """
    with path.open("rb") as stream:
        if json.detect_encoding(stream.read(4)) in ("utf-8", "utf-8-sig"):
            return JsonList(path)
    rows = load_json(path)
    if not isinstance(rows, list):
        raise _no_list(path, rows)
    return HeldTable(path, rows)


def _no_list(path: Path, content: Any) -> ValueError:
    return ValueError(f"file {path.name}: expected a list of rows, found {type(content).__name__}")


def row_bytes(row: Any) -> bytes:
    """Bytes that stand for a row: equal where its content is."""
    return json.dumps(row, sort_keys=True, default=_plain).encode()


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)


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


class ParquetTable(Table):
    """The rows of a Parquet file; one row group is held at a time, so neighbours are quick and memory is bounded."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with parquet_file(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self.starts = np.cumsum([0, *sizes])
        self._held: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} is out of range for {len(self)} rows")
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        if self._held is None or self._held[0] != group:
            with parquet_file(self.path) as file:
                self._held = (group, file.read_row_group(group))
        return self._held[1].slice(index - int(self.starts[group]), 1).to_pylist()[0]

    def scan(self) -> Iterator[Scanned]:
        """Every row, in one pass."""
        size = self.path.stat().st_size
        for done, row in enumerate(parquet_rows([self.path]), start=1):
            yield Scanned(row_bytes(row), row, done, size * done // len(self))

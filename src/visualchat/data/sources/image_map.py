"""Image files that hold many images under ids, read one image at a time and never loaded whole.

MIMIC-IT (arXiv 2306.05425) ships its images as one flat JSON map `{"SD_IMG_...": "<base64>"}` of up to many
gigabytes, later as Parquet tables. A first reading notes where each image lies; the index it leaves in a cache folder
makes every later start immediate. Parquet has no cheap access to a single row, so its images are unpacked once beside
the index.

Layout of an index file: one line of JSON, then N sorted 8-byte digests of the ids, then N pairs of byte offsets.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from visualchat.data.sources.json_scan import Span, scan_map
from visualchat.data.sources.tables import parquet_rows
from visualchat.files import whole_file

_VERSION = 1


@dataclass(frozen=True)
class ImageMap:
    """Images by id, out of one JSON map or one or more Parquet tables (an `ImageArchive`).

    Attributes:
        files: The JSON file, or the Parquet files.
        name: Opens the identity of each image, the same wherever the files lie.
        cache: The folder of the index; made where it is missing.

    Raises:
        ValueError: On first use: a file is missing or of another form, or the cache folder cannot be written.
    """

    files: tuple[Path, ...]
    name: str
    cache: Path

    def __getstate__(self) -> dict[str, Any]:
        """Without the opened index: each process maps the file itself."""
        return {name: getattr(self, name) for name in ("files", "name", "cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __len__(self) -> int:
        return len(self._index[0])

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and len(self._matches(key)) > 0

    def read(self, key: str) -> bytes:
        """The encoded image.

        Raises:
            ValueError: The id is unknown, occurs with different images, or its text is not valid base64.
        """
        images = {self._entry(int(start), int(stop), key) for start, stop in self._matches(key)} - {None}
        if len(images) != 1:
            trouble = "occurs more than once, with different images" if images else "is unknown"
            raise ValueError(f"{self._title}: image id {key!r} {trouble}")
        return images.pop() or b""

    def prepare(self) -> int:
        """Make the index if it is missing or out of date; returns how many images there are."""
        return len(self)

    @property
    def _title(self) -> str:
        return self.files[0].name if len(self.files) == 1 else f"{self.files[0].name} and {len(self.files) - 1} more"

    @property
    def _is_json(self) -> bool:
        return self.files[0].suffix == ".json"

    @property
    def _stem(self) -> Path:
        place = hashlib.sha256("\n".join(str(file.resolve()) for file in self.files).encode()).hexdigest()[:12]
        return self.cache / f"{self.files[0].stem}-{place}"

    @property
    def _data(self) -> Path:
        """The file that offsets point into."""
        return self.files[0] if self._is_json else self._stem.with_suffix(".pack")

    @cached_property
    def _index(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        path = self._stem.with_suffix(".index")
        stamp = self._stamp()
        index = _load(path, stamp, self._data)
        if index is None:
            try:
                self.cache.mkdir(parents=True, exist_ok=True)
                with FileLock(path.with_suffix(".lock")):
                    if _load(path, stamp, self._data) is None:  # another process may have made it meanwhile
                        self._build(path, stamp)
            except OSError as error:
                raise ValueError(
                    f"the index of {self._title} cannot be written ({error}); choose another folder by cache="
                ) from error
            index = _load(path, stamp, self._data)
            if index is None:
                raise ValueError(f"{self._title} changed while it was being indexed")
        return index

    def _stamp(self) -> list[list[Any]]:
        """What tells one state of the files from another."""
        missing = [file.name for file in self.files if not file.is_file()]
        if missing:
            raise ValueError(f"image file {missing[0]} does not exist")
        return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in self.files]

    def _build(self, path: Path, stamp: list[list[Any]]) -> None:
        if self._is_json:
            with self.files[0].open("rb") as stream:
                digests, places = _arrays(scan_map(stream, self._title))
        else:
            with whole_file(self._data) as draft, draft.open("wb") as stream:
                digests, places = _arrays(_pack(stream, self.files))
        order = np.argsort(digests, kind="stable")
        head = {"version": _VERSION, "count": len(digests), "files": stamp, "bytes": self._data.stat().st_size}
        with whole_file(path) as draft, draft.open("wb") as stream:
            stream.write(json.dumps(head).encode() + b"\n")
            stream.write(digests[order].tobytes())
            stream.write(places[order].tobytes())

    def _matches(self, key: str) -> NDArray[np.uint64]:
        digests, places = self._index
        digest = np.uint64(_digest(key))
        first = int(np.searchsorted(digests, digest))
        last = first
        while last < len(digests) and digests[last] == digest:
            last += 1
        return places[first:last]

    def _entry(self, start: int, stop: int, key: str) -> bytes | None:
        """The image of one entry; None where the entry is another id's with the same digest."""
        with self._data.open("rb") as stream:
            stream.seek(start)
            entry = stream.read(stop - start)
        if not self._is_json:
            length = int.from_bytes(entry[:4], "little")
            return entry[4 + length :] if entry[4 : 4 + length].decode() == key else None
        try:
            ((found, text),) = json.loads(b"{" + entry + b"}").items()
            return base64.b64decode(text, validate=True) if found == key else None
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{self._title}: image {key!r} is not valid base64: {error}") from error


def _arrays(spans: Iterable[Span]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Digests (N,) and places (N, 2), without a Python object for each of perhaps a million entries."""
    digests, places = array("Q"), array("Q")
    for key, start, stop in spans:
        digests.append(_digest(key))
        places.extend((start, stop))
    return np.frombuffer(digests, np.uint64), np.frombuffer(places, np.uint64).reshape(-1, 2)


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _load(path: Path, stamp: list[list[Any]], data: Path) -> tuple[NDArray[np.uint64], NDArray[np.uint64]] | None:
    """Digests and places of a whole and current index; None where there is none."""
    try:
        with path.open("rb") as stream:
            line = stream.readline()
        head = json.loads(line)
        count = head["count"]
        current = (_VERSION, stamp, data.stat().st_size) == (head["version"], head["files"], head["bytes"])
        if not current or path.stat().st_size != len(line) + 24 * count:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not count:
        return np.empty(0, np.uint64), np.empty((0, 2), np.uint64)
    # plain views: `searchsorted` on a memmap itself is several times slower
    digests = np.asarray(np.memmap(path, np.uint64, "r", len(line), (count,)))
    places = np.asarray(np.memmap(path, np.uint64, "r", len(line) + 8 * count, (count, 2)))
    return digests, places


def _pack(stream: BinaryIO, files: Sequence[Path]) -> Iterator[Span]:
    """Write each image of Parquet tables after its id; yields where each lies."""
    at = 0
    for number, row in enumerate(parquet_rows(files), start=1):
        where = f"{files[0].name}, image row {number}"
        key = next((row[name] for name in ("id", "index", "__index_level_0__") if isinstance(row.get(name), str)), None)
        picture = row.get("image", row.get("base64"))
        if isinstance(picture, dict):
            picture = picture.get("bytes")
        if isinstance(picture, str):
            try:
                picture = base64.b64decode(picture, validate=True)
            except binascii.Error as error:
                raise ValueError(f"{where}: {key!r} is not valid base64: {error}") from error
        if key is None or not isinstance(picture, bytes):
            raise ValueError(
                f"{where}: expected an id and a column image or base64, found columns {', '.join(sorted(row))}"
            )
        name = key.encode()
        stream.write(len(name).to_bytes(4, "little") + name + picture)
        yield key, at, at + 4 + len(name) + len(picture)
        at += 4 + len(name) + len(picture)

"""What becomes of rows: the reasons for which one is not used, and the sums that account for all of them."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visualchat.data.sources.lazy import LazySequence


class Reason(StrEnum):
    """Why a row is rejected or left out; reports count by these."""

    JSON = "broken JSON"
    FORM = "wrong form"
    ROLE = "unknown or unexpected role"
    EMPTY_QUESTION = "empty question"
    NO_ANSWER = "no answer"
    EMPTY_ANSWER = "empty answer"
    DUPLICATE = "duplicate id"
    NO_OPEN_QUESTION = "no open question"
    NO_IMAGE = "no image"
    UNKNOWN_IMAGE = "unknown image id"
    MISSING_FILE = "missing image file"
    DAMAGED_IMAGE = "damaged image"
    PATH = "path outside the data root"
    PLACEHOLDERS = "placeholders and images differ"
    ANSWER_PLACEHOLDER = "placeholder in an answer"
    TOO_MANY_IMAGES = "too many images"
    OTHER_SPLIT = "another split"
    UNFIT = "cannot be trained on"


def printable(text: str) -> str:
    """A text that a terminal takes for text alone: what would move its cursor or change its colours is spelt out."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


class RejectedRowError(ValueError):
    """Raised inside a reader by a row that is damaged."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class LeftOutError(RejectedRowError):
    """Raised inside a reader by a sound row that the source's settings leave out."""


class RowError(ValueError):
    """A damaged row of a source.

    Attributes:
        source: The source's name.
        row: Where the row lies: its file and line, or its id where rows have names.
        reason: Why it is rejected.
        detail: What was found and what was expected.
    """

    def __init__(self, source: str, row: str, reason: Reason, detail: str) -> None:
        row, detail = printable(row), printable(detail)
        super().__init__(f"{source}, {row}: {reason}: {detail}")
        self.source, self.row, self.reason, self.detail = source, row, reason, detail

    def __reduce__(self) -> tuple[Any, ...]:
        return RowError, (self.source, self.row, self.reason, self.detail)


@dataclass(frozen=True)
class Entry:
    """One dialogue of a source before it is built.

    Attributes:
        id: Names the dialogue; unique in its source.
        group: What the split between training and validation goes by; rows with one id share it.
        members: The ids of the rows that it is made of.
        images: The identities of its images, in order; equal images of different sources have equal ones.
        rows: Where the rows lie in the source's table.
    """

    id: str
    group: str
    members: tuple[str, ...]
    images: tuple[str, ...]
    rows: tuple[int, ...]


class Texts(LazySequence[str]):
    """Many short texts as one stretch of bytes."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.ends = array("Q")

    def append(self, text: str) -> None:
        """Put a text at the end."""
        self.bytes += encoded(text)
        self.ends.append(len(self.bytes))

    def __len__(self) -> int:
        return len(self.ends)

    def item(self, index: int) -> str:
        """Text `index`."""
        start = self.ends[index - 1] if index else 0
        return self.bytes[start : self.ends[index]].decode("utf-8", "surrogatepass")

    def raw(self) -> Iterator[bytes]:
        """The bytes of each text."""
        whole, start = bytes(self.bytes), 0
        for end in self.ends:
            yield whole[start:end]
            start = end


class Entries(LazySequence[Entry]):
    """Entries of one row each, kept as columns, because a million objects would take far more memory.

    Attributes:
        rows: Where each entry's row lies in the source's table.
        groups: What the split goes by.
        again: How often the group occurred up to and with this entry.
        images: The identities of its images, separated by zero bytes, which no identity holds.
        contents: The first 8 bytes of a hash of the row as it is written, and of its images' identities.
    """

    def __init__(self) -> None:
        self.rows, self.again, self.contents = array("Q"), array("Q"), array("Q")
        self.groups, self.images = Texts(), Texts()

    def append(self, row: int, group: str, again: int, images: Iterable[str], raw: bytes) -> None:
        """Put an entry at the end; `raw` is its row as it is written."""
        shown = "\0".join(images)
        content = hashlib.sha256(raw.strip() + b"\0" + encoded(shown)).digest()
        self.rows.append(row)
        self.again.append(again)
        self.contents.append(int.from_bytes(content[:8], "big"))
        self.groups.append(group)
        self.images.append(shown)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All columns, to be stored."""
        return {
            "rows": np.frombuffer(self.rows, np.uint64),
            "again": np.frombuffer(self.again, np.uint64),
            "contents": np.frombuffer(self.contents, np.uint64),
            "groups": np.frombuffer(bytes(self.groups.bytes), np.uint8),
            "group_ends": np.frombuffer(self.groups.ends, np.uint64),
            "images": np.frombuffer(bytes(self.images.bytes), np.uint8),
            "image_ends": np.frombuffer(self.images.ends, np.uint64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Entries:
        """What `arrays` gave."""
        entries = cls()
        entries.rows.frombytes(arrays["rows"].tobytes())
        entries.again.frombytes(arrays["again"].tobytes())
        entries.contents.frombytes(arrays["contents"].tobytes())
        for texts, name in ((entries.groups, "group"), (entries.images, "image")):
            texts.bytes = bytearray(arrays[f"{name}s"].tobytes())
            texts.ends.frombytes(arrays[f"{name}_ends"].tobytes())
        return entries

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> Entry:
        """Entry `index`."""
        index = range(len(self))[index]
        group, again = self.groups[index], self.again[index]
        id = group if again == 1 else f"{group}#{again}"
        images = tuple(self.images[index].split("\0")) if self.images[index] else ()
        return Entry(id, group, (id,), images, (self.rows[index],))


def groups(entries: Sequence[Entry]) -> Iterable[bytes]:
    """The group of each entry as bytes, without making entries where they are columns."""
    return entries.groups.raw() if isinstance(entries, Entries) else (encoded(entry.group) for entry in entries)


def encoded(text: str) -> bytes:
    """A text as bytes, also one with half of a surrogate pair."""
    return text.encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Report:
    """What became of a source's rows; `rows == members + left out + rejected` always holds."""

    source: str
    rows: int
    members: int
    dialogues: int
    left_out: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    rejected: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    notes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        counted = self.members + sum(self.left_out.values()) + sum(self.rejected.values())
        assert self.rows == counted, f"{self.source}: {self.rows} rows, but {counted} are accounted for"


@dataclass
class Tally:
    """What a source's rows have become, so far or for good.

    Attributes:
        source: The source's name.
        rows: How many there are.
        entries: The dialogues.
        errors: The damaged rows.
        left_out: Sound rows that the settings leave out, by reason.
        notes: What is odd but no damage.
        digest: A hash (hex) of all rows' content; empty during the scan.
    """

    source: str
    rows: int = 0
    entries: Entries | list[Entry] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    digest: str = ""

    def reject(self, row: str, error: RejectedRowError) -> None:
        """Count a row that does not become part of a dialogue."""
        if isinstance(error, LeftOutError):
            self.left_out[str(error.reason)] += 1
        else:
            self.errors.append(RowError(self.source, row, error.reason, error.detail))

    def report(self) -> Report:
        """The sums."""
        single = isinstance(self.entries, Entries)
        return Report(
            self.source,
            self.rows,
            len(self.entries) if single else sum(len(entry.members) for entry in self.entries),
            len(self.entries),
            dict(sorted(self.left_out.items())),
            dict(sorted(Counter(str(error.reason) for error in self.errors).items())),
            dict(sorted(self.notes.items())),
        )

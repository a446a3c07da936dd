"""What all corpora have in common: rows become dialogues, every row is accounted for, and each has a lasting identity.

A source is a `Sequence[Dialogue]`. It reads its annotations on first use; pictures are read when they are decoded. Of
each row one of three things becomes:
- a **member** of a dialogue (most dialogues have one; related rows of MIMIC-IT are rounds of one dialogue);
- **left out** by the source's own settings, such as a limit of images: counted, no mistake;
- **rejected**, because it is damaged: a `RowError`, which policy `error` raises and policy `skip` counts.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from visualchat.dialogue import Dialogue, ImageInput, StoredImage

if TYPE_CHECKING:
    from visualchat.data.sources.files import DataRoot

Policy = Literal["error", "skip"]
_SHOWN = 5  # bad rows that one error message names


class Reason(StrEnum):
    """Why a row is rejected or left out; reports count by these."""

    JSON = "broken JSON"
    FORM = "wrong form"
    ROLE = "unknown or unexpected role"
    EMPTY_QUESTION = "empty question"
    NO_ANSWER = "no answer"
    EMPTY_ANSWER = "empty answer"
    DUPLICATE = "duplicate id"
    NO_IMAGE = "no image"
    UNKNOWN_IMAGE = "unknown image id"
    MISSING_FILE = "missing image file"
    PATH = "path outside the data root"
    PLACEHOLDERS = "placeholders and images differ"
    TOO_MANY_IMAGES = "too many images"
    OTHER_SPLIT = "another split"


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
        row: The row's id, or its number where it has none.
        reason: Why it is rejected.
        detail: What was found and what was expected.
    """

    def __init__(self, source: str, row: str, reason: Reason, detail: str) -> None:
        super().__init__(f"{source}, row {row}: {reason}: {detail}")
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
        images: The identities of its images, in order; equal pictures of different sources have equal ones.
        rows: Where the rows lie in the source's table.
    """

    id: str
    group: str
    members: tuple[str, ...]
    images: tuple[str, ...]
    rows: tuple[int, ...]


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
    """A scan in progress: what its rows have become so far."""

    source: str
    rows: int = 0
    entries: list[Entry] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def reject(self, row: str, error: RejectedRowError) -> None:
        """Count a row that does not become part of a dialogue."""
        if isinstance(error, LeftOutError):
            self.left_out[str(error.reason)] += 1
        else:
            self.errors.append(RowError(self.source, row, error.reason, error.detail))

    def report(self) -> Report:
        """The sums."""
        return Report(
            self.source,
            self.rows,
            sum(len(entry.members) for entry in self.entries),
            len(self.entries),
            dict(sorted(self.left_out.items())),
            dict(sorted(Counter(str(error.reason) for error in self.errors).items())),
            dict(sorted(self.notes.items())),
        )


class Source(Sequence[Dialogue], ABC):
    """A corpus as dialogues; subclasses are frozen dataclasses with at least these two fields.

    Attributes:
        root: The data root, under which all files lie.
        on_error: `error` raises on first use if any row is damaged; `skip` leaves damaged rows out and counts them.
    """

    root: str | Path
    on_error: Policy

    @property
    @abstractmethod
    def name(self) -> str:
        """What reports call the source."""

    @abstractmethod
    def _scan(self, tally: Tally) -> None:
        """Look at every row once and enter it into the tally."""

    @abstractmethod
    def _build(self, entry: Entry) -> Dialogue:
        """The dialogue of an entry."""

    @cached_property
    def _root(self) -> DataRoot:
        from visualchat.data.sources.files import DataRoot

        return DataRoot(self.root)

    @cached_property
    def _tally(self) -> Tally:
        if self.on_error not in get_args(Policy):
            raise ValueError(
                f"{self.name}: on_error must be one of {', '.join(get_args(Policy))}, not {self.on_error!r}"
            )
        tally = Tally(self.name)
        self._scan(tally)
        if tally.errors and self.on_error == "error":
            shown = "\n".join(f"  {error}" for error in tally.errors[:_SHOWN])
            more = f"\n  and {len(tally.errors) - _SHOWN} more" if len(tally.errors) > _SHOWN else ""
            raise ValueError(
                f"{self.name}: {len(tally.errors)} of {tally.rows} rows are damaged; on_error=skip leaves them out\n"
                f"{shown}{more}"
            )
        return tally

    @property
    def entries(self) -> Sequence[Entry]:
        """What each dialogue is made of, without building it; `entries[i]` belongs to `self[i]`."""
        return self._tally.entries

    @property
    def errors(self) -> Sequence[RowError]:
        """The damaged rows, with policy `skip`."""
        return self._tally.errors

    def report(self) -> Report:
        """What became of the rows.

        Raises:
            ValueError: With policy `error`: rows are damaged.
        """
        return self._tally.report()

    def prepare(self) -> Report:
        """Read everything that is read once: annotations, indexes; then the report."""
        return self.report()

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Dialogue: ...
    @overload
    def __getitem__(self, index: slice) -> list[Dialogue]: ...
    def __getitem__(self, index: int | slice) -> Dialogue | list[Dialogue]:
        if isinstance(index, slice):
            return [self._build(entry) for entry in self.entries[index]]
        return self._build(self.entries[index])

    def __iter__(self) -> Iterator[Dialogue]:
        return (self._build(entry) for entry in self.entries)


class RowSource(Source):
    """A source whose dialogues have one row each; subclasses say where rows are and how to read one."""

    @cached_property
    @abstractmethod
    def _rows(self) -> Sequence[Any]:
        """The raw rows."""

    @abstractmethod
    def _id(self, row: Any, number: int) -> str:
        """The row's own id, the same in every run and place; RejectedRowError where it has none."""

    @abstractmethod
    def _dialogue(self, row: Any, id: str) -> Dialogue:
        """The dialogue of a row.

        Raises:
            RejectedRowError: The row is damaged or left out.
        """

    def _scan(self, tally: Tally) -> None:
        seen: Counter[str] = Counter()
        for number, row in enumerate(self._rows):
            tally.rows += 1
            group = f"number {number + 1}"
            try:
                group = self._id(row, number)
                seen[group] += 1
                id = group if seen[group] == 1 else f"{group}#{seen[group]}"
                dialogue = checked(self._dialogue(row, id))
                images = tuple(image_identity(image, self._root) for image in dialogue.images)
            except RejectedRowError as error:
                tally.reject(group, error)
                continue
            if seen[group] > 1:
                tally.notes["rows whose id occurred before"] += 1
            tally.entries.append(Entry(id, group, (id,), images, (number,)))

    def _build(self, entry: Entry) -> Dialogue:
        return self._dialogue(self._rows[entry.rows[0]], entry.id)


def checked(dialogue: Dialogue) -> Dialogue:
    """The dialogue, if every turn is answered and all text can be encoded.

    Raises:
        RejectedRowError: It is not.
    """
    for number, turn in enumerate(dialogue.turns, start=1):
        if turn.answer is None:
            raise RejectedRowError(Reason.NO_ANSWER, f"round {number} of {len(dialogue.turns)} has no answer")
        if not turn.answer.strip():
            raise RejectedRowError(Reason.EMPTY_ANSWER, f"round {number} has the answer {turn.answer!r}")
        try:
            (turn.question + turn.answer).encode()
        except UnicodeEncodeError as error:
            raise RejectedRowError(Reason.FORM, f"round {number} is no valid text: {error.reason}") from error
    return dialogue


def image_identity(image: ImageInput, root: DataRoot) -> str:
    """A name of the picture that is the same in every run, and for sources that share it."""
    if isinstance(image, Path):
        return root.identity(image)
    if isinstance(image, StoredImage):
        return f"{getattr(image.store, 'name', 'store')}:{image.key}"
    data = image if isinstance(image, bytes) else image.tobytes()
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def content_id(data: bytes) -> str:
    """An id for a row that brings none: of its content, so that other rows can come and go."""
    return hashlib.sha256(data).hexdigest()[:16]

"""What all corpora have in common: rows become dialogues, every row is accounted for, and each has a lasting identity.

A source is a `Sequence[Dialogue]`. It reads its annotations on first use; images are read when they are decoded. Of
each row one of three things becomes:
- a **member** of a dialogue (most dialogues have one; related rows of MIMIC-IT are rounds of one dialogue);
- **left out** by the source's own settings, such as a limit of images: counted, no mistake;
- **rejected**, because it is damaged: a `RowError`, which policy `error` raises and policy `skip` counts.
"""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

from visualchat.data.progress import bar
from visualchat.data.sources.lazy import LazySequence
from visualchat.data.sources.root import DataRoot
from visualchat.data.sources.row_index import RowIndex
from visualchat.data.sources.rows import Entries, Entry, Reason, RejectedRowError, Report, RowError, Tally, printable
from visualchat.data.sources.tables import Table
from visualchat.dialogue import Dialogue
from visualchat.images import ArchivedImage, ImageInput
from visualchat.images.feature_store import image_key

Policy = Literal["error", "skip"]
_SHOWN = 5  # bad rows that one error message names
_LARGE = 8_000_000  # bytes of annotations from which on an index is kept and a bar shown
_CONTENT_ID = re.compile(r"[0-9a-f]{16}(#\d+)?")
_MALFORMED = (TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)
_STEP = 1000  # rows between two steps of the bar


class Source(LazySequence[Dialogue]):
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

    def place(self, index: int) -> str:
        """Where the rows of dialogue `index` lie, in words."""
        return " + ".join(f"row {member}" for member in self.entries[index].members)

    @cached_property
    def _root(self) -> DataRoot:
        return DataRoot(self.root)

    @cached_property
    def _tally(self) -> Tally:
        if self.on_error not in get_args(Policy):
            raise ValueError(
                f"{self.name}: on_error must be one of {', '.join(get_args(Policy))}, not {self.on_error!r}"
            )
        tally = self._read()
        if not tally.rows:
            raise ValueError(f"{self.name}: there is no row; {self._told()}")
        if tally.errors and self.on_error == "error":
            shown = "\n".join(f"  {error}" for error in tally.errors[:_SHOWN])
            more = f"\n  and {len(tally.errors) - _SHOWN} more" if len(tally.errors) > _SHOWN else ""
            raise ValueError(
                f"{self.name}: {len(tally.errors)} of {tally.rows} rows are damaged; on_error=skip leaves them out\n"
                f"{shown}{more}"
            )
        return tally

    def rows_in(self, index: int) -> tuple[tuple[Sequence[Dialogue], int], ...]:
        """The dialogues of sources that dialogue `index` is made of: itself."""
        return ((self, index),)

    def _read(self) -> Tally:
        """What became of every row."""
        tally = Tally(self.name)
        self._scan(tally)
        return tally

    def _settings(self) -> str:
        """All that decides what rows become, beside the files."""
        settings = [f for f in fields(self) if f.name not in ("root", "on_error", "cache")]  # type: ignore[arg-type]
        return repr([type(self).__qualname__, *((f.name, getattr(self, f.name)) for f in settings)])

    def _told(self) -> str:
        """The settings that say which files are read."""
        return ", ".join(f"{n}={getattr(self, n)}" for n in ("files", "file", "folder", "parts") if hasattr(self, n))

    def digest(self) -> str:
        """A hash (hex) of every row's content, of the settings, and of which rows are used; images are not read."""
        tally = self._tally
        report = tally.report()
        told = [tally.digest, self._settings(), report.dialogues, report.members, [e.row for e in tally.errors]]
        return hashlib.sha256(repr(told).encode("utf-8", "surrogatepass")).hexdigest()

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

    def item(self, index: int) -> Dialogue:
        """Dialogue `index`."""
        return self._build(self.entries[index])

    def __iter__(self) -> Iterator[Dialogue]:
        return (self._build(entry) for entry in self.entries)


class RowSource(Source):
    """A source whose dialogues have one row each; subclasses say where rows are and how to read one."""

    @abstractmethod
    def _open(self) -> Iterable[tuple[str, Table]]:
        """The files, by the name that opens the ids of their rows."""

    @abstractmethod
    def _id(self, file: str, row: Any) -> str:
        """The row's own id, the same in every run and place; RejectedRowError where it has none."""

    @abstractmethod
    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        """The dialogue of a row.

        Raises:
            RejectedRowError: The row is damaged or left out.
        """

    def _checked(self, dialogue: Dialogue) -> Dialogue:
        """The dialogue, if it can be used; RejectedRowError if not."""
        return checked(dialogue)

    def _plain_images(self, row: Any) -> list[str] | None:
        """The identities of the images of a row in the corpus' common form that is surely sound.

        None where that cannot be told at a glance: then the dialogue is built and checked. This is for speed alone.

        Raises:
            RejectedRowError: An image is missing.
        """
        return None

    def _odd(self, row: Any) -> Iterable[str]:
        """What is to be noted of a sound row."""
        return ()

    @cached_property
    def _tables(self) -> tuple[tuple[str, Table], ...]:
        return tuple(self._open())

    def _read(self) -> Tally:
        tables = [table for _, table in self._tables]
        size = sum(table.path.stat().st_size for table in tables)
        if size < _LARGE:
            return super()._read()
        index = RowIndex(self._root, tables, self._settings())
        with index.lock() as writable:
            tally = index.load(self.name)
            if tally is None:
                tally = super()._read()
                if writable:
                    index.save(tally)
        return tally

    def _scan(self, tally: Tally) -> None:
        seen: dict[str, int] = {}
        content = hashlib.sha256()
        tally.entries = entries = Entries()
        size = sum(table.path.stat().st_size for _, table in self._tables)
        shown = bar(f"reading {self.name}", size) if size >= _LARGE else nullcontext(None)
        behind = 0
        with shown as show, self._root.listing():
            for file, table in self._tables:
                content.update(f"{file}\0".encode("utf-8", "surrogatepass"))
                for raw, row, number, read in table.scan():
                    content.update(raw)
                    if show is not None and not tally.rows % _STEP:
                        show(behind + read)
                    group = ""
                    try:
                        group = self._id(file, row)
                        seen[group] = again = seen.get(group, 0) + 1
                        images = self._images_of(file, row, group if again == 1 else f"{group}#{again}")
                    except RejectedRowError as error:
                        tally.reject(_with_id(f"{file}, {table.unit} {number}", file, group), error)
                    else:
                        entries.append(tally.rows, group, again, images, raw)
                        if again > 1:
                            tally.notes["rows whose id occurred before"] += 1
                        for note in self._odd(row):
                            tally.notes[note] += 1
                    tally.rows += 1
                behind += table.path.stat().st_size
        tally.digest = content.hexdigest()

    def _images_of(self, file: str, row: Any, id: str) -> list[str]:
        """The identities of the images of a row, which must be sound."""
        try:
            images = self._plain_images(row)
            if images is None:
                dialogue = self._checked(self._dialogue(file, row, id))
                images = [image_identity(image, self._root) for image in dialogue.images]
        except _MALFORMED as error:  # what no reader foresaw
            raise RejectedRowError(Reason.FORM, f"{type(error).__name__}: {error!s:.200}") from error
        return images

    def place(self, index: int) -> str:
        """The file of a dialogue's row, its line or number there, and its id."""
        entry = self.entries[index]
        file, table, number = self._locate(entry.rows[0])
        return printable(_with_id(f"{file}, {table.unit} {table.number(number)}", file, entry.id))

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(len(table) for _, table in self._tables)]

    def _locate(self, row: int) -> tuple[str, Table, int]:
        """The file of a row, and which row of the file it is."""
        place = bisect_right(self._starts, row) - 1
        file, table = self._tables[place]
        return file, table, row - self._starts[place]

    def _build(self, entry: Entry) -> Dialogue:
        file, table, number = self._locate(entry.rows[0])
        return self._dialogue(file, table[number], entry.id)


def _with_id(place: str, file: str, id: str) -> str:
    """A row's place, with the id if it brings one itself."""
    in_file = id.removeprefix(f"{file}:")
    return place if not in_file or _CONTENT_ID.fullmatch(in_file) else f"{place} (id {in_file})"


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
    return encodable(dialogue)


def encodable(dialogue: Dialogue) -> Dialogue:
    """The dialogue, if all text can be encoded.

    Raises:
        RejectedRowError: It cannot.
    """
    for number, turn in enumerate(dialogue.turns, start=1):
        try:
            (turn.question + (turn.answer or "")).encode()
        except UnicodeEncodeError as error:
            raise RejectedRowError(Reason.FORM, f"round {number} is not valid text: {error.reason}") from error
    return dialogue


def image_identity(image: ImageInput, root: DataRoot) -> str:
    """A name of the image that is the same in every run, and for sources that share it."""
    if isinstance(image, Path):
        return root.identity(image)
    if isinstance(image, ArchivedImage):
        return f"{getattr(image.archive, 'name', 'store')}:{image.key}"
    if isinstance(image, bytes):
        return f"sha256:{hashlib.sha256(image).hexdigest()}"
    return (
        f"pixels:{image_key(image.convert('RGBA') if image.mode == 'P' else image)}"  # P: a palette tells the colours
    )


def content_id(data: bytes) -> str:
    """An id for a row that brings none: of its content, so that other rows can come and go."""
    return hashlib.sha256(data).hexdigest()[:16]

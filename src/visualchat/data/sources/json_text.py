"""JSON as people write it: whole files, single rows, and the values of a long list one after the other."""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 22  # bytes of a JSON list read at a time
_DIGITS = 4000  # of a whole number that Python still reads


@dataclass(frozen=True)
class BrokenRow:
    """What stands for a row that cannot be parsed.

    Attributes:
        detail: Why.
        is_json: Whether it should be JSON.
    """

    detail: str
    is_json: bool = True


class Pairs(dict[str, Any]):
    """A JSON object some of whose names occur again; `again` holds the later entries, which JSON readers drop."""

    again: list[tuple[str, Any]]


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) == len(pairs):
        return whole
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
        hook = _pairs if find_repeated else None
        return json.loads(path.read_bytes(), object_pairs_hook=hook, parse_int=whole_number)
    except OSError as error:
        raise ValueError(f"file {path.name} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"file {path.name} is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}; "
            "is the download complete?"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"file {path.name} is not valid JSON: {error}") from error


def parse_json(raw: bytes) -> Any:
    """The value of a row, or a `BrokenRow`."""
    try:
        return json.loads(raw, parse_int=whole_number)
    except (ValueError, RecursionError) as error:
        return BrokenRow(str(error))


def whole_number(digits: str) -> int | float:
    """A JSON number without a point; one of thousands of digits, which Python refuses, is infinite."""
    return int(digits) if len(digits) <= _DIGITS else float(digits)


class JsonText:
    """JSON values from a stream of UTF-8, a chunk at a time.

    Attributes:
        text: What is in hand.
        at: How much of it is read, in characters.
        offset: The byte of the file at which `at` stands.
    """

    def __init__(self, stream: BinaryIO) -> None:
        head = stream.read(4)
        if json.detect_encoding(head) not in ("utf-8", "utf-8-sig"):
            raise ValueError("expected UTF-8")
        self.offset = 3 if head.startswith(codecs.BOM_UTF8) else 0
        stream.seek(self.offset)
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.decode = json.JSONDecoder(parse_int=whole_number).raw_decode
        self.text, self.at, self.whole = "", 0, False

    def _more(self) -> None:
        chunk = self.stream.read(max(_CHUNK, len(self.text) - self.at))
        self.text, self.at = self.text[self.at :] + self.decoder.decode(chunk, final=not chunk), 0
        self.whole = not chunk

    def _peek(self) -> str:
        """The next character that is not whitespace, which is not passed over; empty at the end."""
        while True:
            while self.at < len(self.text):
                character = self.text[self.at]
                if character not in " \t\r\n":
                    return character
                self.at += 1
                self.offset += 1
            if self.whole:
                return ""
            self._more()

    def next_is_not(self, character: str) -> bool:
        """Whether something else than whitespace comes next."""
        return self._peek() != character

    def expect(self, character: str) -> None:
        """Pass over the next character, which must be this one."""
        if self._peek() != character:
            raise ValueError(f"expected {character!r}, found {self._peek()!r}")
        self.at += 1
        self.offset += 1

    def end(self) -> None:
        """Pass over the list's end, after which nothing may come."""
        self.expect("]")
        if self._peek():
            raise ValueError(f"expected nothing after the list, found {self._peek()!r}")

    def value(self) -> tuple[int, bytes, Any]:
        """The next value: the byte where it begins, its bytes, and what they say."""
        self._peek()
        while True:
            try:
                found, stop = self.decode(self.text, self.at)
                if stop < len(self.text) or self.whole:
                    break
            except json.JSONDecodeError as error:
                cut = error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated string")
                if self.whole or not cut:
                    raise
            self._more()
        raw = self.text[self.at : stop].encode()
        start = self.offset
        self.at, self.offset = stop, start + len(raw)
        return start, raw, found

"""Where each entry of a flat JSON map lies in its file, found in one pass and constant memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import BinaryIO

_CHUNK = 1 << 20  # bytes read at a time

Span = tuple[str, int, int]
"""An id, and the first and the last byte + 1 of its entry."""


def scan_map(stream: BinaryIO, name: str = "map") -> Iterator[Span]:
    """The entries of a flat JSON map of strings, in one pass and constant memory.

    Args:
        stream: The file, at its start.
        name: What errors call it.

    Yields:
        Each key with the byte offsets of its entry `"key": "value"`.

    Raises:
        ValueError: It is not a flat map of strings, or ends too early; the byte is named.
    """
    reader = _Reader(stream, name)
    reader.expect(b"{")
    token = reader.token()
    if token != b"}":
        while True:
            if token != b'"':
                raise reader.error("an id in quotes", token)
            start = reader.offset - 1
            raw = reader.string(keep=True)
            try:
                key = json.loads(b'"' + raw + b'"')
            except ValueError as error:
                raise reader.error(f"a valid id ({error})", raw[:40]) from error
            reader.expect(b":")
            token = reader.token()
            if token != b'"':
                raise reader.error(f"base64 text in quotes for id {key!r}", token)
            reader.string()
            yield key, start, reader.offset
            token = reader.token()
            if token == b"}":
                break
            if token != b",":
                raise reader.error("a comma or the closing brace", token)
            token = reader.token()
    if (token := reader.token()) != b"":
        raise reader.error("nothing after the closing brace", token)


class _Reader:
    """JSON's tokens from a stream, a chunk at a time."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.stream, self.name = stream, name
        self.chunk, self.before = stream.read(max(3, _CHUNK)), 0
        self.at = 3 if self.chunk.startswith(b"\xef\xbb\xbf") else 0  # byte order mark

    @property
    def offset(self) -> int:
        """Of the next byte."""
        return self.before + self.at

    def error(self, expected: str, found: bytes) -> ValueError:
        shown = repr(found.decode(errors="replace")) if found else "the end of the file (is the download complete?)"
        return ValueError(f"{self.name}, byte {self.offset}: expected {expected}, found {shown}")

    def expect(self, token: bytes) -> None:
        if (found := self.token()) != token:
            raise self.error(repr(token.decode()), found)

    def token(self) -> bytes:
        """The next byte that is not whitespace; empty at the end."""
        while True:
            while self.at < len(self.chunk):
                byte = self.chunk[self.at : self.at + 1]
                self.at += 1
                if byte not in b" \t\r\n":
                    return byte
            if not self._next():
                return b""

    def string(self, keep: bool = False) -> bytes:
        """Go behind the closing quote; the bytes before it if they are to be kept."""
        chunks: list[bytes] = []
        quote = -1
        while True:
            if quote < self.at:
                quote = self.chunk.find(b'"', self.at)
            stop = len(self.chunk) if quote < 0 else quote
            escape = self.chunk.find(b"\\", self.at, stop)
            end = stop if escape < 0 else min(escape + 2, len(self.chunk))
            if keep:
                chunks.append(self.chunk[self.at : end])
            split = escape >= 0 and escape + 2 > len(self.chunk)  # the escaped byte opens the next chunk
            self.at = end
            if escape < 0 and quote >= 0:
                self.at += 1
                return b"".join(chunks)
            if self.at == len(self.chunk):
                if not self._next():
                    raise self.error("a closing quote", b"")
                quote = -1
                if split:
                    self.at = 1
                    if keep:
                        chunks.append(self.chunk[:1])

    def _next(self) -> bool:
        self.before += len(self.chunk)
        self.chunk, self.at = self.stream.read(_CHUNK), 0
        return bool(self.chunk)

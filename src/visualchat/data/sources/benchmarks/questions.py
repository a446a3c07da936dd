"""What readers of benchmarks share: a question with its options and answer as a round, images of Parquet rows, files.

A reader says where its rows lie and what is asked; the rest is here. Options stand below the question, one a line, "A."
before each, and a request below them says how to answer. A `<image>` in question or options is the place of the next
image; without any, the images open the question.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from visualchat.data.sources.base import RowSource
from visualchat.data.sources.fields import as_mapping, get_id, place_images
from visualchat.data.sources.root import DataRoot
from visualchat.data.sources.rows import Reason, RejectedRowError
from visualchat.data.sources.tables import ParquetTable, Table
from visualchat.dialogue import Expected, Turn
from visualchat.images import ImageInput

LETTERS = string.ascii_uppercase
BY_LETTER = "Answer with the letter of one option."
BY_NAMES = "Answer with names, commas between them."
IN_SHORT = "Answer with a word or a short phrase."
YES_OR_NO = "Answer yes or no."

_LED = re.compile(r"\s*\(?([A-Z])[).:]\s*")


class Benchmark(RowSource):
    """A source whose rows have an id of their own in the field `_ID`."""

    _ID = "id"

    def _id(self, file: str, row: Any) -> str:
        return f"{file}:{get_id(as_mapping(row), self._ID)}"


def parquet_files(root: DataRoot, folder: str, split: str) -> Iterator[tuple[str, Table]]:
    """The Parquet files of a split as the Hub names them, `<split>-00000-of-00001.parquet`, with the folder's name.

    Raises:
        ValueError: There is none.
    """
    paths = sorted(root.folder(folder).glob(f"{split}-*.parquet"))
    if not paths:
        raise ValueError(f"folder {folder!r}: expected files like {split}-00000-of-00001.parquet under the data root")
    for path in paths:
        yield folder if len(paths) == 1 else f"{folder}/{path.name}", ParquetTable(path)


def column_image(value: Any) -> bytes:
    """The encoded image of a Parquet column of images: {"bytes": ..., "path": ...}, or bytes.

    Raises:
        RejectedRowError: It is something else.
    """
    found = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(found, bytes):
        raise RejectedRowError(Reason.NO_IMAGE, f"expected an image's bytes, found {type(found).__name__}")
    return found


def letter_of(value: Any, options: Sequence[str]) -> str:
    """The letter of the right option, published as "B", "(B)" or "B.".

    Raises:
        RejectedRowError: It is something else, or the letter of no option.
    """
    match = re.fullmatch(r"\s*\(?([A-Za-z])[).:]?\s*", value) if isinstance(value, str) else None
    letter = match[1].upper() if match else ""
    if not letter or letter not in LETTERS[: len(options)]:
        raise RejectedRowError(
            Reason.NO_ANSWER, f"expected the letter of one of {len(options)} options as the answer, found {value!r:.40}"
        )
    return letter


def plain_options(values: Sequence[Any]) -> tuple[str, ...]:
    """Options without the letters that some files put before them.

    Raises:
        RejectedRowError: There are fewer than two or too many, or one is not a text.
    """
    if not 2 <= len(values) <= len(LETTERS) or not all(isinstance(value, str) for value in values):
        raise RejectedRowError(
            Reason.FORM, f"expected 2 to {len(LETTERS)} texts as options, found {list(values)!r:.60}"
        )
    led = [_LED.match(value) for value in values]
    if all(match and match[1] == letter for match, letter in zip(led, LETTERS, strict=False)):
        return tuple(value[match.end() :].strip() for value, match in zip(values, led, strict=True) if match)
    return tuple(value.strip() for value in values)


def lettered(question: str, options: Sequence[str]) -> str:
    """The question with its options below it."""
    return "\n".join([question.strip(), *(f"{LETTERS[n]}. {option}" for n, option in enumerate(options))])


def turn(
    text: str,
    images: Sequence[ImageInput],
    answer: str,
    *,
    request: str = "",
    kind: str = "",
    options: Sequence[str] = (),
    references: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
) -> Turn:
    """A round of a benchmark.

    Args:
        text: The question, with its options if it has any, and `<image>` where an image stands.
        images: Its images.
        answer: The true one.
        request: How to answer, below the question.
        kind: Of question.
        options: What there is to choose from.
        references: Further answers that are accepted.
        tags: What else scores are split by.

    Raises:
        RejectedRowError: The question or the answer is blank, or placeholders and images differ.
    """
    if not text.strip():
        raise RejectedRowError(Reason.EMPTY_QUESTION, f"the question is {text!r}")
    if not answer.strip():
        raise RejectedRowError(Reason.EMPTY_ANSWER, f"the answer is {answer!r}")
    (content,) = place_images([f"{text}\n{request}" if request else text], images, images_first=False)
    expected = Expected(references=tuple(references), options=tuple(options), tags=dict(tags or {}))
    return Turn(content, answer.strip(), kind, expected)


def named_image(root: DataRoot, folder: str, name: Any) -> Path:
    """An image's file by its name.

    Raises:
        RejectedRowError: It is not a name, leads out of the root, or there is no such file.
    """
    if not isinstance(name, str) or not name:
        raise RejectedRowError(Reason.NO_IMAGE, f"expected an image's file name, found {name!r:.40}")
    return root.file(f"{folder}/{name}" if folder else name)

"""Your own images in a folder, with captions: a text file beside each image (a.jpg, a.txt), or one file for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visualchat.data.sources.base import Policy, RowSource
from visualchat.data.sources.captions import SHORT_REQUESTS
from visualchat.data.sources.fields import choose, turns, without_placeholder
from visualchat.data.sources.json_text import BrokenRow, load_json
from visualchat.data.sources.rows import Reason, RejectedRowError
from visualchat.data.sources.tables import CsvTable, HeldTable, JsonLines, SpanTable, Table
from visualchat.dialogue import Dialogue

ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".tga")
UNREAD = (".heic", ".heif", ".avif", ".jxl")
"""Of images in formats that are not read: a folder's are bad rows, so that none is passed over in silence."""
_NAMES, _CAPTIONS = ("file_name", "image"), ("text", "caption")


class _Pictures(HeldTable):
    unit = "picture"


@dataclass(frozen=True)
class PictureFolder(RowSource):
    """Every image of a folder and its subfolders, with its caption.

    Attributes:
        root: The data root.
        folder: From the root on.
        captions: A file of all captions, in the folder: .json ({"a.jpg": "A cat."}), or .jsonl, .csv or .tsv with
            `file_name` and `text`, as the Hub's image folders have it; null for a text file beside each image.
        request: What asks for a caption; null draws one of a few for each image.
        name: What reports call the source.
        seed: Of the drawn requests.
        on_error: `error` or `skip`.
    """

    root: str | Path
    folder: str
    captions: str | None = None
    request: str | None = None
    name: str = "pictures"
    seed: int = 0
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        home = self._root.folder(self.folder)
        files = sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())
        images = [name for name in files if name.lower().endswith((*ENDINGS, *UNREAD))]
        if self.captions is None:
            rows: list[tuple[str, Any]] = [(name, _text_beside(home / name)) for name in images]
        else:
            rows = _read_captions(self._root.annotation(f"{self.folder}/{self.captions}"))
            captioned = {name for name, _ in rows}
            rows += [(name, None) for name in images if name not in captioned]
        yield self.folder, _Pictures(home, rows)

    def _id(self, file: str, row: Any) -> str:
        return f"{file}:{row[0]}"

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        name, caption = row
        if isinstance(caption, BrokenRow):
            raise RejectedRowError(Reason.FORM, caption.detail)
        if caption is None:
            wanted = Path(name).with_suffix(".txt").name if self.captions is None else f"a line in {self.captions}"
            raise RejectedRowError(Reason.NO_ANSWER, f"the image has no caption, expected {wanted}")
        if not isinstance(caption, str) or "\0" in caption:
            raise RejectedRowError(Reason.FORM, f"expected a text as caption, found {caption!r:.60}")
        if not caption.strip():
            raise RejectedRowError(Reason.EMPTY_ANSWER, "the caption is blank")
        image = self._root.file(f"{self.folder}/{name}")
        question = self.request or choose(SHORT_REQUESTS, id, self.seed)
        return Dialogue(turns([(image, question)], [without_placeholder(caption)]), id)


def _text_beside(picture: Path) -> str | BrokenRow | None:
    """The caption of an image; None where there is no file for it."""
    try:
        return picture.with_suffix(".txt").read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        return BrokenRow(f"{picture.with_suffix('.txt').name} cannot be read: {error}")


def _read_captions(path: Path) -> list[tuple[str, Any]]:
    """Names and captions of one file.

    Raises:
        ValueError: It is of another kind or form.
    """
    if path.suffix == ".json":
        captions = load_json(path)
        if not isinstance(captions, dict):
            raise ValueError(f'file {path.name}: expected {{"a.jpg": "A cat.", ...}}, found {type(captions).__name__}')
        return list(captions.items())
    if path.suffix not in (".jsonl", ".csv", ".tsv"):
        raise ValueError(f"file {path.name}: expected a name that ends in .json, .jsonl, .csv or .tsv")
    lines: SpanTable = JsonLines(path) if path.suffix == ".jsonl" else CsvTable(path)
    return [_named_caption(row.value, f"{path.name}, line {row.number}") for row in lines.scan()]


def _named_caption(row: Any, place: str) -> tuple[str, Any]:
    if isinstance(row, BrokenRow):
        return place, BrokenRow(f"{place}: {row.detail}")
    fields = row if isinstance(row, Mapping) else {}
    name = next((fields[key] for key in _NAMES if isinstance(fields.get(key), str)), None)
    caption = next((fields[key] for key in _CAPTIONS if key in fields), None)
    if name is None or not isinstance(caption, str):
        return place, BrokenRow(
            f"{place}: expected file_name and text, found {', '.join(map(str, fields)) or row!r:.80}"
        )
    return name, caption

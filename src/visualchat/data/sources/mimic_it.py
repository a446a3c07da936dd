"""MIMIC-IT (arXiv 2306.05425): CGD, SD, SN, TVC and VST, in each of the forms in which they were published.

Instructions: {"meta": {...}, "data": {"SD_INS_00001": {"instruction": ..., "answer": ..., "image_ids": [...],
"rel_ins_ids": [...]}}}, or a Parquet table with the columns id, instruction, answer, images, related instructions.
Images: a flat JSON map of base64 texts, a Parquet table with the id as index, or a table with columns id and image.

Rows that name each other as related and show the same images are the rounds of one dialogue. Related rows with other
images are examples of the same task and stay dialogues of their own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from visualchat.data.sources.base import Policy, Source, checked, image_identity
from visualchat.data.sources.disjoint_sets import DisjointSets
from visualchat.data.sources.fields import as_mapping, get_list, get_text, turns
from visualchat.data.sources.image_map import ImageMap
from visualchat.data.sources.json_text import Pairs, load_json
from visualchat.data.sources.row_index import FOLDER
from visualchat.data.sources.rows import Entry, LeftOutError, Reason, RejectedRowError, Report, Tally
from visualchat.data.sources.tables import parquet_rows, row_bytes
from visualchat.dialogue import Dialogue
from visualchat.images import ArchivedImage, ImageInput

_MISSING_RELATED = "related ids that do not exist"
_OTHER_IMAGES = "related rows that show other images"
_LONGEST = 20  # digits of an image's number
_TVC = re.compile(r"TVC_IMG_(?P<first>.*?_clip_\d+)_(?P<second>.*?)_?(?P<frame>\d+)")


@dataclass(frozen=True)
class MimicIt(Source):
    """One of the parts of MIMIC-IT.

    Attributes:
        root: The data root.
        part: Its abbreviation, which opens file names and ids, such as SD.
        folder: Where its files lie, from the root on.
        max_images: Rows with more images are left out; null for no limit.
        coco_folder: Read the COCO image whose number the id holds from here, not from the part's image file; for CGD,
            whose images are those of COCO, made small.
        cache: The folder of the image index; null for `.visualchat` in the data root.
        on_error: `error` or `skip`.
    """

    root: str | Path
    part: str
    folder: str = "MIMIC-IT"
    max_images: int | None = None
    coco_folder: str | None = None
    cache: str | Path | None = None
    on_error: Policy = "error"

    @property
    def name(self) -> str:
        """As in the paper's table 1."""
        return f"otter_mimicit_{self.part.lower()}"

    def prepare(self) -> Report:
        """Index the images, then read the instructions."""
        if self.coco_folder is None:
            self._images.prepare()
        return super().prepare()

    @cached_property
    def _images(self) -> ImageMap:
        stem = f"{self.folder}/{self.part}"
        path = self._root.first(
            f"{stem}.json", f"{stem}.parquet", f"{stem}_frames.parquet", f"{stem}_Images.parquet", f"{stem}_Images/"
        )
        if path is None:
            raise ValueError(
                f"{self.name}: no images; expected {stem}.json, {stem}.parquet or {stem}_Images/ under the data root"
            )
        cache = Path(self.root) / FOLDER if self.cache is None else Path(self.cache)
        return ImageMap(_shards(path), stem, cache)

    @cached_property
    def _rows(self) -> tuple[tuple[str, Any], ...]:
        stem = f"{self.folder}/{self.part}"
        path = self._root.first(f"{stem}_instructions.json", f"{stem}_Instructions.parquet", f"{stem}_Instructions/")
        if path is None:
            raise ValueError(
                f"{self.name}: no instructions; expected {stem}_instructions.json or {stem}_Instructions/ under the "
                "data root"
            )
        if path.suffix != ".json":
            return tuple(_table_rows(_shards(path)))
        whole = load_json(path, find_repeated=True)
        data = whole.get("data") if isinstance(whole, dict) else None
        if not isinstance(data, dict):
            raise ValueError(f'file {path.name}: expected {{"meta": ..., "data": {{...}}}} with rows in data')
        return (*data.items(), *(data.again if isinstance(data, Pairs) else ()))

    def _scan(self, tally: Tally) -> None:
        tally.rows = len(self._rows)
        sound: dict[str, tuple[int, tuple[str, ...]]] = {}
        ids: set[str] = set()
        content = hashlib.sha256()
        with self._root.listing():
            for number, (id, row) in enumerate(self._rows):
                content.update(row_bytes([id, row]))
                try:
                    if id in ids:
                        raise RejectedRowError(Reason.DUPLICATE, "an earlier row has this id")
                    ids.add(id)
                    images = self._read_images(row)
                    checked(self._dialogue([row], images, id))
                    sound[id] = number, tuple(image_identity(image, self._root) for image in images)
                except RejectedRowError as error:
                    tally.reject(f"row {id}", error)
        tally.digest = content.hexdigest()
        tally.entries = entries = []
        for members in self._related(sound, ids, tally):
            named = tuple(f"{self.folder}/{self.part}:{id}" for id in members)
            rows = tuple(sound[id][0] for id in members)
            entries.append(Entry(named[0], min(named), named, sound[members[0]][1], rows))

    def _related(
        self, sound: Mapping[str, tuple[int, tuple[str, ...]]], ids: set[str], tally: Tally
    ) -> list[list[str]]:
        """The rows of each dialogue, in the file's order; `sound` gives each row's number and images."""
        related = DisjointSets()
        for id, (number, images) in sound.items():
            for other in self._rows[number][1].get("rel_ins_ids") or ():
                if other not in ids:
                    tally.notes[_MISSING_RELATED] += 1
                elif other in sound and sound[other][1] != images:
                    tally.notes[_OTHER_IMAGES] += 1
                elif other in sound:
                    related.join(other, id)
        groups: dict[str, list[str]] = {}
        for id in sound:
            groups.setdefault(related.smallest(id), []).append(id)
        return list(groups.values())

    def _read_images(self, row: Any) -> list[ImageInput]:
        """A row's images: all of them, or none and an error."""
        keys = get_list(as_mapping(row), "image_ids")
        if not keys:
            raise RejectedRowError(Reason.NO_IMAGE, "image_ids is empty")
        if not all(isinstance(key, str) for key in keys):
            raise RejectedRowError(Reason.FORM, "expected texts in image_ids")
        if self.max_images is not None and len(keys) > self.max_images:
            raise LeftOutError(Reason.TOO_MANY_IMAGES, f"{len(keys)} images, at most {self.max_images} are wanted")
        return [self._image(key) for key in keys]

    def _image(self, key: str) -> ImageInput:
        if self.coco_folder is not None:
            return self._root.file(f"{self.coco_folder}/{coco_number(key):012d}.jpg")
        for candidate in spellings(key):
            if candidate in self._images:
                return ArchivedImage(self._images, candidate)
        raise RejectedRowError(
            Reason.UNKNOWN_IMAGE, f"{key!r} is not among the {len(self._images)} images of {self._images.name}"
        )

    def _build(self, entry: Entry) -> Dialogue:
        rows = [self._rows[number][1] for number in entry.rows]
        return self._dialogue(rows, self._read_images(rows[0]), entry.id)

    def _dialogue(self, rows: Sequence[Mapping[str, Any]], images: Sequence[ImageInput], id: str) -> Dialogue:
        related = [row.get("rel_ins_ids") for row in rows]
        if not all(r is None or (isinstance(r, list) and all(isinstance(i, str) for i in r)) for r in related):
            raise RejectedRowError(Reason.FORM, "expected a list of ids in rel_ins_ids")
        questions = [get_text(row, "instruction", Reason.EMPTY_QUESTION).strip() for row in rows]
        answers = [get_text(row, "answer", Reason.EMPTY_ANSWER) for row in rows]
        contents = [(*(images if not number else ()), question) for number, question in enumerate(questions)]
        return Dialogue(turns(contents, answers), id)


def coco_number(key: str) -> int:
    """The number of the COCO image that an id names.

    It is what follows the last underscore: ids have 12 digits, some 16, and older ones an infix before the number.

    Raises:
        RejectedRowError: The id ends in no number.
    """
    digits = key.rpartition("_")[2]
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _LONGEST):
        raise RejectedRowError(Reason.UNKNOWN_IMAGE, f"{key!r:.80} does not end in an image's number")
    return int(digits)


def spellings(key: str) -> Iterator[str]:
    """The forms in which an image file may hold an id.

    TVC's instructions name the clip twice, or once cut short and once whole, where its image file names it once.
    """
    yield key
    if match := _TVC.fullmatch(key):
        first, frame = match["first"], match["frame"]
        clip = match["second"] or first
        cut = clip.partition("_")[2]
        forms = (clip, first, f"{clip}_{clip}", f"{cut}_{clip}")
        yield from (name for name in dict.fromkeys(f"TVC_IMG_{form}_{frame}" for form in forms) if name != key)


def _shards(path: Path) -> tuple[Path, ...]:
    """A file, or the Parquet files of a folder."""
    if path.is_file():
        return (path,)
    shards = tuple(sorted(path.glob("*.parquet")))
    if not shards:
        raise ValueError(f"folder {path.name} holds no Parquet file")
    return shards


def _table_rows(paths: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The Hub's instruction tables in the form of the JSON files."""
    columns = {"image_ids": "images", "rel_ins_ids": "related instructions"}
    for number, row in enumerate(parquet_rows(paths), start=1):
        id = row.get("id")
        fields = {name: row.get(columns.get(name, name)) for name in ("instruction", "answer", *columns)}
        yield id if isinstance(id, str) else f"number {number}", fields

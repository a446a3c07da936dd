"""Your own images in a table: a CSV or TSV file with a line of column names, one question or caption a row.

image,question,answer          or    image,caption
a.jpg,What is it?,A cat.             a.jpg,A cat on a chair.
a.jpg;b.jpg,Same cat?,No.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visualchat.data.sources.base import Policy, RowSource, content_id
from visualchat.data.sources.captions import SHORT_REQUESTS
from visualchat.data.sources.fields import as_mapping, choose, get_text, place_images, turns, without_placeholder
from visualchat.data.sources.root import names
from visualchat.data.sources.rows import Reason, RejectedRowError
from visualchat.data.sources.tables import CsvTable, Table
from visualchat.dialogue import Dialogue


@dataclass(frozen=True)
class Spreadsheet(RowSource):
    """Rows of CSV or TSV files, UTF-8.

    Attributes:
        root: The data root; images lie under it.
        files: From the root on, each ending in .csv or .tsv.
        image: The column of image files, or several columns; a cell may name several files.
        question: The column of questions; `<image>` in one stands for the row's next image.
        answer: The column of answers.
        caption: The column that is answered with where a file has no questions.
        request: What asks for a caption; null draws one of a few for each row.
        image_separator: Between the files of a cell.
        image_folder: Where images lie, from the root on.
        name: What reports call the source.
        images_first: Whether images move to their turn's start.
        seed: Of the drawn requests.
        on_error: `error` or `skip`.
    """

    root: str | Path
    files: str | Sequence[str]
    image: str | Sequence[str] = "image"
    question: str = "question"
    answer: str = "answer"
    caption: str = "caption"
    request: str | None = None
    image_separator: str = ";"
    image_folder: str = ""
    name: str = "table"
    images_first: bool = True
    seed: int = 0
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        for name in names(self.files):
            table = CsvTable(self._root.annotation(name))
            self._check(name, table.columns)
            yield name, table

    def _check(self, file: str, columns: Sequence[str]) -> None:
        missing = [column for column in names(self.image) if column not in columns]
        if missing:
            raise ValueError(
                f"file {file}: there is no column {missing[0]!r} for images; the columns are {', '.join(columns)}; "
                "name the right one by source.image="
            )
        if not {self.question, self.answer} <= set(columns) and self.caption not in columns:
            raise ValueError(
                f"file {file}: expected columns {self.question!r} and {self.answer!r}, or {self.caption!r}; "
                f"the columns are {', '.join(columns)}; name the right ones by source.question= and source.answer=, or "
                "source.caption="
            )

    def _id(self, file: str, row: Any) -> str:
        fields = as_mapping(row)
        return f"{file}:{fields.get('id') or content_id(json.dumps(fields, sort_keys=True).encode())}"

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        fields = as_mapping(row)
        cells = [name for column in names(self.image) for name in fields[column].split(self.image_separator)]
        shown = [name.strip() for name in cells if name.strip()]
        if not shown:
            raise RejectedRowError(Reason.NO_IMAGE, f"{' and '.join(names(self.image))} is empty")
        images = [self._root.file(f"{self.image_folder}/{name}" if self.image_folder else name) for name in shown]
        if self.question in fields and self.answer in fields:
            question = get_text(fields, self.question, Reason.EMPTY_QUESTION)
            answer = get_text(fields, self.answer, Reason.EMPTY_ANSWER)
        else:
            question = self.request or choose(SHORT_REQUESTS, id, self.seed)
            answer = get_text(fields, self.caption, Reason.EMPTY_ANSWER)
        contents = place_images([question], images, images_first=self.images_first)
        return Dialogue(turns(contents, [without_placeholder(answer)]), id)

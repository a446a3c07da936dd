"""Benchmarks of one image a question: POPE, ScienceQA, VQAv2, captions of COCO in Karpathy's test split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from visualchat.data.sources.base import Policy
from visualchat.data.sources.benchmarks.questions import (
    BY_LETTER,
    IN_SHORT,
    LETTERS,
    YES_OR_NO,
    Benchmark,
    lettered,
    named_image,
    plain_options,
    turn,
)
from visualchat.data.sources.fields import as_mapping, get_id, get_list, get_text
from visualchat.data.sources.json_text import load_json
from visualchat.data.sources.root import names
from visualchat.data.sources.rows import LeftOutError, Reason, RejectedRowError
from visualchat.data.sources.tables import HeldTable, JsonLines, Table
from visualchat.dialogue import Dialogue


@dataclass(frozen=True)
class Pope(Benchmark):
    """POPE (arXiv 2305.10355): whether an object is in an image; random, popular and adversarial objects.

    A line: {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there ...?", "label": "yes"}.

    Attributes:
        root: The data root.
        name: What reports call the source.
        files: From the root on; a file's name is its questions' kind.
        image_folder: With COCO's validation images of 2014, from the root on.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "pope"
    files: Sequence[str] = (
        "POPE/coco_pope_random.json",
        "POPE/coco_pope_popular.json",
        "POPE/coco_pope_adversarial.json",
    )
    image_folder: str = "coco/val2014"
    on_error: Policy = "error"

    _ID = "question_id"

    def _open(self) -> Iterator[tuple[str, Table]]:
        return ((name, JsonLines(self._root.annotation(name))) for name in names(self.files))

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        answer = get_text(row, "label").strip().lower()
        if answer not in ("yes", "no"):
            raise RejectedRowError(Reason.NO_ANSWER, f"expected yes or no in label, found {answer!r:.40}")
        image = named_image(self._root, self.image_folder, row.get("image"))
        kind = Path(file).stem.rpartition("_")[2]
        return Dialogue(
            (turn(get_text(row, "text", Reason.EMPTY_QUESTION), [image], answer, request=YES_OR_NO, kind=kind),), id
        )


@dataclass(frozen=True)
class ScienceQa(Benchmark):
    """ScienceQA (arXiv 2209.09513): choices from school books; with an image, unless `only_with_image` is false.

    {"<id>": {"question", "choices": [...], "answer": 0, "hint", "image": "image.png" or null, "subject", "split"}}; the
    image is images/<split>/<id>/image.png.

    Attributes:
        root: The data root.
        name: What reports call the source.
        file: From the root on.
        image_folder: From the root on.
        splits: The row's own splits to read; rows of others are left out.
        only_with_image: Whether questions without image are left out.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "scienceqa"
    file: str = "ScienceQA/problems.json"
    image_folder: str = "ScienceQA/images"
    splits: Sequence[str] = ("test",)
    only_with_image: bool = True
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        path = self._root.annotation(self.file)
        whole = load_json(path)
        if not isinstance(whole, dict):
            raise ValueError(f"file {path.name}: expected an object of rows, found {type(whole).__name__}")
        yield self.file, HeldTable(path, [*whole.items()])

    def _id(self, file: str, row: tuple[str, Any]) -> str:
        return f"{file}:{row[0]}"

    def _dialogue(self, file: str, row: tuple[str, Any], id: str) -> Dialogue:
        number, fields = row[0], as_mapping(row[1])
        if (split := get_text(fields, "split")) not in self.splits:
            raise LeftOutError(Reason.OTHER_SPLIT, f"split {split!r}")
        if not fields.get("image") and self.only_with_image:
            raise LeftOutError(Reason.NO_IMAGE, "a question without image")
        images = []
        if fields.get("image"):
            images = [named_image(self._root, f"{self.image_folder}/{split}/{number}", fields["image"])]
        options, place = plain_options(get_list(fields, "choices")), fields.get("answer")
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(options):
            raise RejectedRowError(Reason.NO_ANSWER, f"answer must be below {len(options)}, found {place!r:.40}")
        hint = fields["hint"].strip() if isinstance(fields.get("hint"), str) else ""
        text = lettered(
            "\n".join(filter(None, (hint, get_text(fields, "question", Reason.EMPTY_QUESTION).strip()))), options
        )
        kind = get_text(fields, "subject") if "subject" in fields else ""
        return Dialogue((turn(text, images, LETTERS[place], request=BY_LETTER, kind=kind, options=options),), id)


@dataclass(frozen=True)
class VqaV2(Benchmark):
    """VQAv2 (arXiv 1612.00837): open questions, each answered by ten people.

    Questions: {"questions": [{"question_id", "image_id", "question"}]}. Answers: {"annotations": [{"question_id",
    "answer_type", "answers": [{"answer": "yes", ...}]}]}. The answer of most people is the true one.

    Attributes:
        root: The data root.
        name: What reports call the source.
        file: The questions, from the root on.
        answers: From the root on.
        image_folder: From the root on.
        image_name: Of an image, its number in place of {}.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "vqav2"
    file: str = "VQAv2/v2_OpenEnded_mscoco_val2014_questions.json"
    answers: str = "VQAv2/v2_mscoco_val2014_annotations.json"
    image_folder: str = "coco/val2014"
    image_name: str = "COCO_val2014_{:012d}.jpg"
    on_error: Policy = "error"

    _ID = "question_id"

    def _open(self) -> Iterator[tuple[str, Table]]:
        path = self._root.annotation(self.file)
        yield self.file, HeldTable(path, _rows_of(path, "questions"))

    @cached_property
    def _annotations(self) -> dict[Any, Any]:
        rows = _rows_of(self._root.annotation(self.answers), "annotations")
        return {row.get("question_id"): row for row in rows if isinstance(row, dict)}

    def _settings(self) -> str:
        with self._root.annotation(self.answers).open("rb") as file:
            return f"{super()._settings()} {hashlib.file_digest(file, 'sha256').hexdigest()}"

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        said = self._annotations.get(row["question_id"])
        if said is None:
            raise RejectedRowError(Reason.NO_ANSWER, f"question {row['question_id']} has no entry in {self.answers}")
        answers = [get_text(as_mapping(answer), "answer") for answer in get_list(said, "answers")]
        number = row.get("image_id")
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise RejectedRowError(Reason.UNKNOWN_IMAGE, f"image_id must be a number, found {number!r:.40}")
        image = named_image(self._root, self.image_folder, self.image_name.format(number))
        if not answers:
            raise RejectedRowError(Reason.NO_ANSWER, "answers is empty")
        answer = Counter(answers).most_common(1)[0][0]
        answers.remove(answer)
        kind = str(said.get("answer_type", ""))
        asked = turn(
            get_text(row, "question", Reason.EMPTY_QUESTION),
            [image],
            answer,
            request=IN_SHORT,
            kind=kind,
            references=answers,
        )
        return Dialogue((asked,), id)


@dataclass(frozen=True)
class CocoKarpathy(Benchmark):
    """Captions of COCO 2014 in Karpathy's test split, all five of an image as references for CIDEr-D.

    {"images": [{"filename", "filepath", "split": "test", "sentences": [{"raw": "..."}]}]}; for training on the other
    splits there is the source `coco_caption`.

    Attributes:
        root: The data root.
        name: What reports call the source.
        file: From the root on.
        image_folder: With COCO's images of 2014, from the root on.
        splits: The row's own splits to read; rows of others are left out.
        request: What is asked of every image.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "coco_karpathy"
    file: str = "coco_caption/dataset.json"
    image_folder: str = "coco/2014"
    splits: Sequence[str] = ("test",)
    request: str = "Write a caption for this image."
    on_error: Policy = "error"

    _ID = "filename"

    def _open(self) -> Iterator[tuple[str, Table]]:
        path = self._root.annotation(self.file)
        yield self.file, HeldTable(path, _rows_of(path, "images"))

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        if (split := get_text(row, "split")) not in self.splits:
            raise LeftOutError(Reason.OTHER_SPLIT, f"split {split!r}")
        captions = [get_text(as_mapping(s), "raw", Reason.EMPTY_ANSWER).strip() for s in get_list(row, "sentences")]
        if not captions:
            raise RejectedRowError(Reason.NO_ANSWER, "sentences is empty")
        image = named_image(self._root, self.image_folder, get_id(row, "filename"))
        return Dialogue((turn(self.request, [image], captions[0], references=captions[1:]),), id)


def _rows_of(path: Path, key: str) -> list[Any]:
    """The list under a name of a JSON object."""
    whole = load_json(path)
    rows = whole.get(key) if isinstance(whole, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f"file {path.name}: expected an object with a list of rows in {key!r}")
    return rows

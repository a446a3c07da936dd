"""Corpora that the published code reads beside the paper's nine: COCO captions, MiniGPT-4, A-OKVQA, OCR-VQA.

All ask about one image; where a corpus brings no question, one of a few requests is drawn by the row's id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from visualchat.data.sources.base import Policy, RowSource
from visualchat.data.sources.fields import as_mapping, choose, get_id, get_list, get_text, turns
from visualchat.data.sources.json_text import Pairs, load_json
from visualchat.data.sources.rows import LeftOutError, Reason, RejectedRowError
from visualchat.data.sources.tables import HeldTable, Table, json_list
from visualchat.dialogue import Dialogue

SHORT_REQUESTS = (
    "Write a caption for this image.",
    "What does the image show, in one sentence?",
    "Sum this picture up briefly.",
    "Give me a short description of the image.",
)
LONG_REQUESTS = (
    "Describe this image in detail.",
    "What is there to see in this picture? Be thorough.",
    "Please tell me everything you notice in the image.",
    "Give a full description of the picture.",
)
REASON_REQUESTS = ("Why?", "Please explain your answer.", "How can you tell?", "What supports that?")


def _rows_under(path: Path, key: str) -> Table:
    """The list under a name of a JSON object."""
    whole = load_json(path)
    rows = whole.get(key) if isinstance(whole, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f"file {path.name}: expected an object with a list of rows in {key!r}")
    return HeldTable(path, rows)


@dataclass(frozen=True)
class CocoCaption(RowSource):
    """Captions of COCO 2014 in Karpathy's file: {"images": [{"filename", "split", "cocoid", "sentences": [{"raw"}]}]}.

    Attributes:
        root: The data root.
        name: What reports call the source.
        file: From the root on.
        image_folder: With the training and the validation images of 2014.
        splits: The row's own splits to take; rows of others are left out.
        seed: Of the drawn request and caption.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "coco_caption"
    file: str = "coco_caption/dataset.json"
    image_folder: str = "coco/2014"
    splits: Sequence[str] = ("train", "restval")
    seed: int = 0
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        yield self.file, _rows_under(self._root.annotation(self.file), "images")

    def _id(self, file: str, row: Any) -> str:
        return f"{self.file}:{get_text(as_mapping(row), 'filename', Reason.FORM)}"

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        if (split := get_text(row, "split")) not in self.splits:
            raise LeftOutError(Reason.OTHER_SPLIT, f"split {split!r}")
        sentences = get_list(row, "sentences")
        if not sentences:
            raise RejectedRowError(Reason.NO_ANSWER, "sentences is empty")
        caption = get_text(as_mapping(choose(sentences, f"{id} caption", self.seed)), "raw", Reason.EMPTY_ANSWER)
        image = self._root.file(f"{self.image_folder}/{row['filename']}")
        return Dialogue(turns([(image, choose(SHORT_REQUESTS, id, self.seed))], [caption]), id)


@dataclass(frozen=True)
class MiniGpt4(RowSource):
    """MiniGPT-4's second stage (arXiv 2304.10592): {"annotations": [{"image_id": "2", "caption": "..."}]}.

    Attributes:
        root: The data root.
        name: What reports call the source.
        file: From the root on.
        image_folder: With `<image_id>.jpg`.
        seed: Of the drawn request.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "minigpt4"
    file: str = "cc_sbu_align/filter_cap.json"
    image_folder: str = "cc_sbu_align/image"
    seed: int = 0
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        yield self.file, _rows_under(self._root.annotation(self.file), "annotations")

    def _id(self, file: str, row: Any) -> str:
        return f"{self.file}:{get_id(as_mapping(row), 'image_id')}"

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        caption = get_text(row, "caption", Reason.EMPTY_ANSWER)
        image = self._root.file(f"{self.image_folder}/{get_id(row, 'image_id')}.jpg")
        return Dialogue(turns([(image, choose(LONG_REQUESTS, id, self.seed))], [caption]), id)


@dataclass(frozen=True)
class AOkVqa(RowSource):
    """A-OKVQA (arXiv 2206.01718): questions with the reasons for their answers.

    [{"question_id", "image_id": 299207, "question", "choices": [...], "correct_choice_idx": 1, "rationales": [...]}]

    Attributes:
        root: The data root.
        name: What reports call the source.
        file: From the root on.
        image_folder: With `<12 digits>.jpg`.
        seed: Of the drawn request for reasons.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "aokvqa"
    file: str = "aokvqa/annotations/aokvqa_v1p0_train.json"
    image_folder: str = "coco/train2017"
    seed: int = 0
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        yield self.file, json_list(self._root.annotation(self.file))

    def _id(self, file: str, row: Any) -> str:
        return f"{self.file}:{get_id(as_mapping(row), 'question_id')}"

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        question = get_text(row, "question", Reason.EMPTY_QUESTION).strip()
        choices, place, reasons = get_list(row, "choices"), row.get("correct_choice_idx"), get_list(row, "rationales")
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(choices):
            raise RejectedRowError(
                Reason.NO_ANSWER, f"correct_choice_idx must be below {len(choices)}, found {place!r:.40}"
            )
        if not all(isinstance(text, str) for text in (choices[place], *reasons)):
            raise RejectedRowError(Reason.FORM, "expected texts in choices and rationales")
        if not choices[place].strip():
            raise RejectedRowError(Reason.EMPTY_ANSWER, "the correct choice is blank")
        answer = " ".join(_sentence(text) for text in (choices[place], *reasons) if text.strip())
        number = row.get("image_id")
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise RejectedRowError(Reason.UNKNOWN_IMAGE, f"image_id must be a number, found {number!r:.40}")
        image = self._root.file(f"{self.image_folder}/{number:012d}.jpg")
        request = choose(REASON_REQUESTS, id, self.seed)
        return Dialogue(turns([(image, f"{question} {request}")], [answer]), id)


@dataclass(frozen=True)
class OcrVqa(RowSource):
    """OCR-VQA: book covers, {"<id>": {"imageURL", "questions": [...], "answers": [...], "split": 1}}.

    Attributes:
        root: The data root.
        name: What reports call the source.
        file: From the root on.
        image_folder: With `<id><ending of the URL>`.
        splits: The row's own splits to take (1 train, 2 validation, 3 test); rows of others are left out.
        max_rounds: The most questions of a cover to ask; null for all.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "ocr_vqa"
    file: str = "OCR_VQA/dataset.json"
    image_folder: str = "OCR_VQA/images"
    splits: Sequence[int] = (1,)
    max_rounds: int | None = None
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        path = self._root.annotation(self.file)
        whole = load_json(path, find_repeated=True)
        if not isinstance(whole, dict):
            raise ValueError(f"file {self.file}: expected an object of rows, found {type(whole).__name__}")
        yield self.file, HeldTable(path, (*whole.items(), *(whole.again if isinstance(whole, Pairs) else ())))

    def _id(self, file: str, row: tuple[str, Any]) -> str:
        return f"{self.file}:{row[0]}"

    def _dialogue(self, file: str, row: tuple[str, Any], id: str) -> Dialogue:
        fields = as_mapping(row[1])
        if (split := fields.get("split")) not in self.splits:
            raise LeftOutError(Reason.OTHER_SPLIT, f"split {split!r:.40}")
        questions, answers = get_list(fields, "questions"), get_list(fields, "answers")
        if len(questions) != len(answers) or not questions:
            raise RejectedRowError(Reason.NO_ANSWER, f"{len(questions)} questions, {len(answers)} answers")
        if not all(isinstance(text, str) for text in (*questions, *answers)):
            raise RejectedRowError(Reason.FORM, "expected texts in questions and answers")
        ending = PurePosixPath(urlsplit(get_text(fields, "imageURL")).path).suffix
        image = self._root.file(f"{self.image_folder}/{row[0]}{ending}")
        asked = questions[: self.max_rounds]
        contents = [(*((image,) if not number else ()), text.strip()) for number, text in enumerate(asked)]
        return Dialogue(turns(contents, answers[: self.max_rounds]), id)


def _sentence(text: str) -> str:
    text = text.strip()
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")

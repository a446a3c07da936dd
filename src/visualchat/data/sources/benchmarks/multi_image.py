"""Benchmarks of one question about several images: MuirBench, BLINK, Mantis-Eval, NLVR2, SEED-Bench-2, MIRB, MIMIC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visualchat.data.sources.base import Policy, content_id
from visualchat.data.sources.benchmarks.questions import (
    BY_LETTER,
    BY_NAMES,
    IN_SHORT,
    LETTERS,
    YES_OR_NO,
    Benchmark,
    column_image,
    letter_of,
    lettered,
    named_image,
    parquet_files,
    plain_options,
    turn,
)
from visualchat.data.sources.fields import PLACEHOLDER, as_mapping, get_id, get_list, get_names, get_text
from visualchat.data.sources.json_text import load_json
from visualchat.data.sources.rows import LeftOutError, Reason, RejectedRowError
from visualchat.data.sources.tables import HeldTable, JsonLines, Table, json_list, row_bytes
from visualchat.dialogue import Dialogue


@dataclass(frozen=True)
class MuirBench(Benchmark):
    """MuirBench (arXiv 2406.09411): choices about 2 to 9 images, each with a twin that has no right option but "none".

    Columns: idx, task, image_relation, image_type, question, options, answer ("B"), image_list, counterpart_idx.
    A question and its twin share the tag `group`.

    Attributes:
        root: The data root.
        name: What reports call the source.
        folder: With the Parquet files, from the root on.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "muirbench"
    folder: str = "MUIRBENCH/data"
    on_error: Policy = "error"

    _ID = "idx"

    def _open(self) -> Iterator[tuple[str, Table]]:
        return parquet_files(self._root, self.folder, "test")

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        options = plain_options(get_list(row, "options"))
        images = [column_image(image) for image in get_list(row, "image_list")]
        tags = {name: get_text(row, name) for name in ("image_relation", "image_type")}
        if twin := row.get("counterpart_idx"):
            tags["group"] = "-".join(sorted((get_id(row, "idx"), str(twin))))
        question = turn(
            lettered(get_text(row, "question", Reason.EMPTY_QUESTION), options),
            images,
            letter_of(row.get("answer"), options),
            request=BY_LETTER,
            kind=get_text(row, "task"),
            options=options,
            tags=tags,
        )
        return Dialogue((question,), id)


@dataclass(frozen=True)
class Blink(Benchmark):
    """BLINK (arXiv 2404.12390): fourteen tasks of perception, 1 to 4 images a question.

    Columns: idx, sub_task, question, prompt (with the options), image_1 to image_4, choices, answer ("(B)"). The
    answers of `test` are hidden, so that only `val` can be scored.

    Attributes:
        root: The data root.
        name: What reports call the source.
        folder: With a folder of Parquet files for each task, from the root on.
        tasks: To read; null for every folder.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "blink"
    folder: str = "BLINK"
    tasks: Sequence[str] | None = None
    on_error: Policy = "error"

    _ID = "idx"

    def _open(self) -> Iterator[tuple[str, Table]]:
        folder = self._root.folder(self.folder)
        tasks = self.tasks or sorted(path.name for path in folder.iterdir() if [*path.glob("val-*.parquet")])
        if not tasks:
            raise ValueError(f"{self.name}: expected folders with files like val-00000-of-00001.parquet in {folder}")
        for task in tasks:
            yield from parquet_files(self._root, f"{self.folder}/{task}", "val")

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        options = plain_options(get_list(row, "choices"))
        shown = [row[f"image_{n}"] for n in range(1, 5) if row.get(f"image_{n}") is not None]
        question = turn(
            get_text(row, "prompt", Reason.EMPTY_QUESTION),
            [column_image(image) for image in shown],
            letter_of(row.get("answer"), options),
            request=BY_LETTER,
            kind=get_text(row, "sub_task"),
            options=options,
        )
        return Dialogue((question,), id)


@dataclass(frozen=True)
class MantisEval(Benchmark):
    """Mantis-Eval (arXiv 2405.01483): 217 questions of reasoning over images, choices and short answers.

    Columns: id, question_type ("multi-choice" or "short-answer"), question with <image>, images, options ("(A) ..."),
    answer, data_source, category.

    Attributes:
        root: The data root.
        name: What reports call the source.
        folder: With the Parquet files, from the root on.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "mantis_eval"
    folder: str = "Mantis-Eval/mantis_eval"
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        return parquet_files(self._root, self.folder, "test")

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        images = [column_image(image) for image in get_list(row, "images")]
        text, kind, answer = (
            get_text(row, "question", Reason.EMPTY_QUESTION),
            get_text(row, "question_type"),
            get_text(row, "answer"),
        )
        tags = {"category": row["category"]} if isinstance(row.get("category"), str) else {}
        if kind == "short-answer":
            return Dialogue((turn(text, images, answer, request=IN_SHORT, kind=kind, tags=tags),), id)
        if kind != "multi-choice":
            raise RejectedRowError(
                Reason.FORM, f"expected multi-choice or short-answer in question_type, found {kind!r:.40}"
            )
        options = plain_options(get_list(row, "options"))
        letter = letter_of(answer, options)
        asked = turn(lettered(text, options), images, letter, request=BY_LETTER, kind=kind, options=options, tags=tags)
        return Dialogue((asked,), id)


@dataclass(frozen=True)
class Nlvr2(Benchmark):
    """NLVR2 (arXiv 1811.00491): whether a sentence is true of two photographs.

    A line: {"identifier": "test1-0-1-0", "sentence": "...", "label": "True"}; its images are test1-0-1-img0.png and
    -img1.png. The tag `group` is the sentence's: with `groups_right` it gives the published "consistency".

    Attributes:
        root: The data root.
        name: What reports call the source.
        file: From the root on.
        image_folder: With the images, from the root on.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "nlvr2"
    file: str = "nlvr2/data/test1.json"
    image_folder: str = "nlvr2/test1"
    on_error: Policy = "error"

    _ID = "identifier"

    def _open(self) -> Iterator[tuple[str, Table]]:
        yield self.file, JsonLines(self._root.annotation(self.file))

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        parts = get_text(row, "identifier").split("-")
        if len(parts) != 4:
            raise RejectedRowError(
                Reason.FORM, f"expected an identifier like test1-0-1-0, found {row['identifier']!r:.40}"
            )
        split, number, pair, sentence = parts
        answer = {"true": "yes", "false": "no"}.get(str(row.get("label")).lower())
        if answer is None:
            raise RejectedRowError(Reason.NO_ANSWER, f"expected True or False in label, found {row.get('label')!r:.40}")
        images = [self._root.file(f"{self.image_folder}/{split}-{number}-{pair}-img{n}.png") for n in (0, 1)]
        text = get_text(row, "sentence", Reason.EMPTY_QUESTION).strip()
        asked = f'The first image was on the left, the second on the right. Is this true of them: "{text}"'
        tags = {"group": f"{split}-{number}-{sentence}"}
        return Dialogue((turn(asked, images, answer, request=YES_OR_NO, tags=tags),), id)


@dataclass(frozen=True)
class SeedBench2(Benchmark):
    """SEED-Bench-2 (arXiv 2311.17092), the questions about several images.

    {"questions": [{"question_id", "question", "choice_a" to "choice_d", "answer": "B", "data_id": ["a.png", ...],
    "data_type": "Multiple Images", "data_source": "SEED-Bench v2" or "cc3m", "question_type_id", ...}]}; <img> in a
    question is the place of an image. Questions of other types are left out.

    Attributes:
        root: The data root.
        name: What reports call the source.
        file: From the root on.
        image_folder: With the images, from the root on.
        cc3m_folder: With the images whose source is cc3m, from the root on.
        types: Values of data_type to read.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "seed_bench_2"
    file: str = "SEED-Bench-2/SEED-Bench_v2_level1_2_3.json"
    image_folder: str = "SEED-Bench-2/SEED-Bench-2-image"
    cc3m_folder: str = "SEED-Bench-2/cc3m-image"
    types: Sequence[str] = ("Multiple Images", "Interleaved Image")
    on_error: Policy = "error"

    _ID = "question_id"

    def _open(self) -> Iterator[tuple[str, Table]]:
        path = self._root.annotation(self.file)
        whole = load_json(path)
        rows = whole.get("questions") if isinstance(whole, dict) else None
        if not isinstance(rows, list):
            raise ValueError(f"file {path.name}: expected an object with a list of rows in 'questions'")
        yield self.file, HeldTable(path, rows)

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        if (kind := get_text(row, "data_type")) not in self.types:
            raise LeftOutError(Reason.OTHER_SPLIT, f"data_type {kind!r}")
        folder = self.cc3m_folder if row.get("data_source") == "cc3m" else self.image_folder
        images = [named_image(self._root, folder, name) for name in get_names(row, "data_id")]
        options = plain_options([row.get(f"choice_{letter}") for letter in "abcd"])
        question = turn(
            lettered(get_text(row, "question", Reason.EMPTY_QUESTION).replace("<img>", PLACEHOLDER), options),
            images,
            letter_of(row.get("answer"), options),
            request=BY_LETTER,
            kind=kind,
            options=options,
            tags={"type": str(row.get("question_type_id", ""))},
        )
        return Dialogue((question,), id)


@dataclass(frozen=True)
class Mirb(Benchmark):
    """MIRB (arXiv 2406.12742): short answers and letters about several images, a file a task.

    A row: {"questions": "...", "answers": "3", "images": ["..."]}; options, where there are any, stand in the question,
    and the answer is then a letter.

    Attributes:
        root: The data root.
        name: What reports call the source.
        folder: With a JSON file for each task, from the root on; images are named from there.
        tasks: To read; null for every file.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "mirb"
    folder: str = "MIRB"
    tasks: Sequence[str] | None = None
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        folder = self._root.folder(self.folder)
        tasks = self.tasks or sorted(path.stem for path in folder.glob("*.json"))
        if not tasks:
            raise ValueError(f"{self.name}: expected files like count.json in {folder}")
        for task in tasks:
            yield task, json_list(self._root.annotation(f"{self.folder}/{task}.json"))

    def _id(self, file: str, row: Any) -> str:
        return f"{file}:{content_id(row_bytes(as_mapping(row)))}"

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        images = [named_image(self._root, self.folder, name) for name in get_list(row, "images")]
        answer = get_id(row, "answers").strip()
        request = BY_LETTER if len(answer) == 1 and answer in LETTERS else IN_SHORT
        asked = turn(get_text(row, "questions", Reason.EMPTY_QUESTION), images, answer, request=request, kind=file)
        return Dialogue((asked,), id)


NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@dataclass(frozen=True)
class Mimic(Benchmark):
    """MIMIC (arXiv 2601.07812): count over all images, list what is there, what all share, the odd one out.

    Columns: images, question, gt ("3", "zebra" or "car, bus"), task, and id or idx. Images without what is asked about
    stand between the others; how many there are is a split of every score.

    Attributes:
        root: The data root.
        name: What reports call the source.
        folder: With a folder of Parquet files for each task, from the root on.
        tasks: To read.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "mimic"
    folder: str = "MIMIC"
    tasks: Sequence[str] = ("counting", "listing", "common", "oddone")
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        for task in self.tasks:
            yield from parquet_files(self._root, f"{self.folder}/{task}", "test")

    def _id(self, file: str, row: Any) -> str:
        return f"{file}:{get_id(as_mapping(row), 'idx' if 'idx' in row else 'id')}"

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        task = file.removeprefix(f"{self.folder}/").partition("/")[0]
        images = [column_image(image) for image in get_list(row, "images")]
        answer = get_id(row, "gt").strip()
        if task == "counting" and not answer.isdecimal():
            raise RejectedRowError(Reason.NO_ANSWER, f"expected a number in gt, found {answer!r:.40}")
        in_words = NUMBERS[int(answer)] if answer.isdecimal() and int(answer) < len(NUMBERS) else None
        asked = turn(
            get_text(row, "question", Reason.EMPTY_QUESTION),
            images,
            answer,
            request=BY_NAMES if task == "listing" else IN_SHORT,
            kind=task,
            references=[in_words] if in_words else [],
        )
        return Dialogue((asked,), id)

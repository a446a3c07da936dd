"""Benchmarks of several rounds: MMDU, SparklesEval, VisChainBench. Images come in later rounds, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visualchat.data.sources.base import Policy
from visualchat.data.sources.benchmarks.questions import BY_LETTER, LETTERS, Benchmark, named_image, turn
from visualchat.data.sources.fields import (
    PLACEHOLDER,
    as_mapping,
    get_list,
    get_names,
    get_text,
    pair_rounds,
    place_images,
    turns,
)
from visualchat.data.sources.json_text import load_json
from visualchat.data.sources.rows import Reason, RejectedRowError
from visualchat.data.sources.sparkles import Sparkles
from visualchat.data.sources.tables import HeldTable, Table, json_list
from visualchat.dialogue import Dialogue, Expected, Turn


@dataclass(frozen=True)
class Mmdu(Benchmark):
    """MMDU (arXiv 2406.11833): 110 dialogues about 2 to 20 images, with reference answers for a judge.

    {"<id>": {"id", "image": ["..."], "conversations": [{"from": "user", "value": "... <ImageHere> ..."},
    {"from": "assistant", "value": "..."}]}}, or a list of such rows.

    Attributes:
        root: The data root.
        name: What reports call the source.
        file: From the root on.
        image_folder: Where the images lie that rows name, from the root on.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "mmdu"
    file: str = "MMDU/benchmark.json"
    image_folder: str = "MMDU"
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        path = self._root.annotation(self.file)
        whole = load_json(path)
        if isinstance(whole, dict):
            whole = [*whole.values()]
        if not isinstance(whole, list):
            raise ValueError(f"file {path.name}: expected rows, found {type(whole).__name__}")
        yield self.file, HeldTable(path, whole)

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        rounds = pair_rounds(get_list(row, "conversations"), "from", "value", ("user", "assistant"))
        images = [named_image(self._root, self.image_folder, name) for name in get_names(row, "image")]
        questions = [question.replace("<ImageHere>", PLACEHOLDER) for question, _ in rounds]
        contents = place_images(questions, images, images_first=False)
        return Dialogue(turns(contents, [answer for _, answer in rounds]), id)


@dataclass(frozen=True)
class SparklesEval(Sparkles):
    """SparklesEval (arXiv 2308.16463): 150 dialogues in SparklesDialogue's form, with answers by GPT-4 as references.

    Attributes:
        root: The data root.
        name: What reports call the source.
        parts: Folders with the annotations and images/<id>.jpg, from the root on.
        style: How images are named; see `Sparkles`.
        images_first: Whether images move to their turn's start or stay at their name.
        seed: Of the drawn styles.
        on_error: `error` or `skip`.
    """

    name: str = "sparkles_eval"
    parts: Sequence[str] = ("SparklesEval",)
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        for part in self.parts:
            file = f"{part}/annotations/sparkles_evaluation_sparkleseval_annotations.json"
            yield part, json_list(self._root.annotation(file))

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        dialogue = super()._dialogue(file, row, id)
        listed = [image for message in row["dialogue"] for image in message.get("images", ())]
        said = {str(image["image_id"]): str(image.get("caption") or "") for image in listed}
        told = [tuple(said[Path(str(image)).stem] for image in asked.images) for asked in dialogue.turns]
        rounds = [
            replace(asked, expected=Expected(captions=of)) for asked, of in zip(dialogue.turns, told, strict=True)
        ]
        return replace(dialogue, turns=tuple(rounds))


@dataclass(frozen=True)
class VisChainBench(Benchmark):
    """VisChainBench (arXiv 2512.06759): tasks of several steps; each step shows new images and asks for one of them.

    A folder with a task.json a task, unpacked from the published archives, in two of its three forms: {"questions":
    [{"question", "task_description", "choices": [{"image": "...", "correct": true}]}]}, after a description of the
    scene, and {"initial_condition": "...", "steps": [{"condition": "...", "options": [{"option": "A", "image": "..."}],
    "correct_option": "A"}]}. In-context tasks, the third, are rejected with a message.

    Attributes:
        root: The data root.
        name: What reports call the source.
        folder: From the root on; every task.json below it is a row, and names its images from its own folder on.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "vischainbench"
    folder: str = "VisChainBench"
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        top = self._root.folder(self.folder)
        paths = sorted(top.rglob("task.json"))
        if not paths:
            raise ValueError(f"{self.name}: there is no task.json below {self.folder!r}; are the archives unpacked?")
        for path in paths:
            yield self._root.identity(path.parent), HeldTable(path, [load_json(path)])

    def _id(self, file: str, row: Any) -> str:
        as_mapping(row)
        return file

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        steps = row.get("steps") if "initial_condition" in row else row.get("questions")
        if isinstance(steps, list) and steps:
            return Dialogue(self._of_images(file, row) if steps is row.get("steps") else self._with_text(file, row), id)
        raise RejectedRowError(
            Reason.FORM,
            "expected questions, or initial_condition and steps; in-context tasks (question_start_label) are not read",
        )

    def _with_text(self, file: str, row: Any) -> tuple[Turn, ...]:
        scene = str(row.get("initial_scene_description") or "").strip()
        rounds: list[Turn] = []
        for number, step in enumerate(map(as_mapping, get_list(row, "questions"))):
            choices = [as_mapping(choice) for choice in get_list(step, "choices")]
            right = [place for place, choice in enumerate(choices) if choice.get("correct") is True]
            if len(right) != 1:
                raise RejectedRowError(
                    Reason.NO_ANSWER, f"step {number + 1}: expected one correct choice, found {len(right)}"
                )
            words = [get_text(step, "question", Reason.EMPTY_QUESTION).strip()]
            if number == 0 and scene:
                words.insert(0, scene)
            images = [choice.get("image") for choice in choices]
            rounds.append(self._step(file, "\n".join(words), [], images, LETTERS[right[0]], "image and text"))
        return tuple(rounds)

    def _of_images(self, file: str, row: Any) -> tuple[Turn, ...]:
        rounds: list[Turn] = []
        for number, step in enumerate(map(as_mapping, get_list(row, "steps"))):
            choices = [as_mapping(choice) for choice in get_list(step, "options")]
            names = [choice.get("option") for choice in choices]
            if names.count(step.get("correct_option")) != 1:
                raise RejectedRowError(
                    Reason.NO_ANSWER, f"step {number + 1}: {step.get('correct_option')!r:.40} is not one of {names}"
                )
            before = [row.get("initial_condition")] if number == 0 else []
            before += [step["condition"]] if step.get("condition") else []
            words = f"{PLACEHOLDER * len(before)}Which of these images follows?"
            letter = LETTERS[names.index(step["correct_option"])]
            images = [choice.get("image") for choice in choices]
            rounds.append(self._step(file, words, before, images, letter, "images alone"))
        return tuple(rounds)

    def _step(
        self, file: str, words: str, before: Sequence[Any], choices: Sequence[Any], letter: str, kind: str
    ) -> Turn:
        """A round that asks for one of several images."""
        if not 2 <= len(choices) <= len(LETTERS):
            raise RejectedRowError(Reason.FORM, f"expected 2 to {len(LETTERS)} images to choose from: {len(choices)}")
        options = tuple(f"image {LETTERS[place]}" for place in range(len(choices)))
        lines = [f"{LETTERS[place]}. {PLACEHOLDER}" for place in range(len(choices))]
        images = [named_image(self._root, file, name) for name in (*before, *choices)]
        return turn("\n".join([words, *lines]), images, letter, request=BY_LETTER, kind=kind, options=options)

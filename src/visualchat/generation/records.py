"""Answered conversations as lines of JSON in the messages format, and as a table of all models' answers."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from visualchat.dialogue import Content, Dialogue
from visualchat.files import whole_file
from visualchat.generation.answer import Answer


@dataclass(frozen=True)
class Record:
    """One conversation that one model has answered: a line of JSON.

    Attributes:
        id: The conversation's.
        row: The file and line that it is from.
        model: The model's name.
        messages: The whole conversation with all answers, as `data/source=messages` reads it.
        asked: The rounds that the model answered, from 1.
        ended: How each of these answers ended.
        given: The answers that the file had to these rounds; empty where it had none.
        shown: Names of the files of each round's images, below the run's folder.
    """

    id: str
    row: str
    model: str
    messages: list[dict[str, Any]]
    asked: list[int]
    ended: list[str]
    given: list[str]
    shown: list[list[str]]

    def line(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"

    def rounds(self) -> list[tuple[str, str]]:
        """The words of each question, and its answer."""
        spoken = [message for message in self.messages if message["role"] != "system"]
        return [(_words(q["content"]), a["content"]) for q, a in zip(spoken[::2], spoken[1::2], strict=True)]


def record(
    dialogue: Dialogue, row: str, model: str, answers: Mapping[int, Answer], root: Path, shown: Sequence[Sequence[str]]
) -> Record:
    """What is written of a conversation.

    Args:
        dialogue: As it was read; the answers of the rounds that were asked are those that its file gave.
        row: The file and line that it is from.
        model: The model's name.
        answers: By the index of their round.
        root: The folder that images are named from.
        shown: Names of the files of each round's images.
    """
    messages: list[dict[str, Any]] = []
    if dialogue.system is not None:
        messages.append({"role": "system", "content": dialogue.system})
    for index, turn in enumerate(dialogue.turns):
        content = [_item(item, root) for item in turn.content]
        messages.append({"role": "user", "content": content})
        answer = answers[index].text if index in answers else turn.answer
        messages.append({"role": "assistant", "content": answer})
    return Record(
        id=dialogue.id,
        row=row,
        model=model,
        messages=messages,
        asked=[index + 1 for index in sorted(answers)],
        ended=[answers[index].ended for index in sorted(answers)],
        given=[dialogue.turns[index].answer or "" for index in sorted(answers)],
        shown=[[*names] for names in shown],
    )


def _item(item: Content, root: Path) -> dict[str, str]:
    """Text, or an image by its name from the root on or by its bytes."""
    if isinstance(item, str):
        return {"type": "text", "text": item}
    if isinstance(item, Path):
        return {"type": "image", "path": item.relative_to(root).as_posix()}
    assert isinstance(item, bytes), type(item)  # rows of messages hold nothing else
    with Image.open(io.BytesIO(item)) as image:
        kind = Image.MIME.get(image.format or "", "image/png")
    return {"type": "image", "image": f"data:{kind};base64,{base64.b64encode(item).decode()}"}


def _words(content: str | Sequence[Mapping[str, str]]) -> str:
    if isinstance(content, str):
        return content
    return "".join("<image>" if item["type"] == "image" else item["text"] for item in content)


def read_records(path: Path) -> list[Record]:
    """The records of a file that a run has written."""
    with path.open(encoding="utf-8") as file:
        return [Record(**json.loads(line)) for line in file]


def side_by_side(files: Mapping[str, Path]) -> dict[str, dict[str, Record]]:
    """The records of each conversation by model, in the order in which the models' files have them.

    Args:
        files: By the model's name.
    """
    found: dict[str, dict[str, Record]] = {}
    for name, path in files.items():
        for one in read_records(path):
            found.setdefault(one.id, {})[name] = one
    return found


def write_table(conversations: Mapping[str, Mapping[str, Record]], models: Sequence[str], path: Path) -> None:
    """A CSV file: a row for each question that was asked, a column for each model's answer."""
    with whole_file(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["row", "round", "images", "question", "given", *models, *(f"{name} ended" for name in models)])
        for by_model in conversations.values():
            one = next(iter(by_model.values()))
            for place, (number, given) in enumerate(zip(one.asked, one.given, strict=True)):
                question = one.rounds()[number - 1][0]
                images = sum(map(len, one.shown[:number]))
                answers = [by_model[n].rounds()[number - 1][1] if n in by_model else "" for n in models]
                ended = [by_model[n].ended[place] if n in by_model else "" for n in models]
                table.writerow([one.row, number, images, question, given, *answers, *ended])

r"""LLaVA-Instruct-150K (arXiv 2304.08485): detail and complex reasoning as single rounds, conversations as dialogues.

A row: {"id": "000000442786", "image": "000000442786.jpg",
        "conversations": [{"from": "human", "value": "What is it?\n<image>"}, {"from": "gpt", "value": "..."}, ...]}
The later mix of 665K rows names images with their folder; multi-image data lists names; rows without `image` are text.
M4-Instruct calls the id `sample_id`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visualchat.data.sources.base import Policy, RowSource
from visualchat.data.sources.fields import (
    PLACEHOLDER,
    as_mapping,
    get_id,
    get_list,
    get_names,
    is_text,
    pair_rounds,
    place_images,
    turns,
    without_placeholder,
)
from visualchat.data.sources.root import names
from visualchat.data.sources.tables import Table, json_list
from visualchat.dialogue import Dialogue

_SPEAKERS = ("human", "gpt")


@dataclass(frozen=True)
class Llava(RowSource):
    """Rows in LLaVA's form.

    Attributes:
        root: The data root.
        name: What reports call the source.
        files: JSON files of rows, from the root on.
        image_folder: Where images lie that are named without a folder.
        first_round_only: Whether a dialogue ends after its first answer; rows that are cut so are counted as a note.
        images_first: Whether images move to their turn's start.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "llava"
    files: str | Sequence[str] = ("llava/detail_23k.json", "llava/complex_reasoning_77k.json")
    image_folder: str = "coco/train2017"
    first_round_only: bool = False
    images_first: bool = True
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        return ((name, json_list(self._root.annotation(name))) for name in names(self.files))

    def _id(self, file: str, row: Any) -> str:
        fields = as_mapping(row)
        return f"{file}:{get_id(fields, 'id' if 'id' in fields else 'sample_id')}"

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        fields = as_mapping(row)
        rounds = pair_rounds(get_list(fields, "conversations"), "from", "value", _SPEAKERS)
        images = [self._image(name) for name in get_names(fields, "image")]
        contents = place_images([question for question, _ in rounds], images, images_first=self.images_first)
        all_turns = turns(contents, [without_placeholder(answer) for _, answer in rounds])
        return Dialogue(all_turns[:1] if self.first_round_only else all_turns, id)

    def _plain_images(self, row: Any) -> list[str] | None:
        if type(row) is not dict or type(image := row.get("image")) is not str:
            return None
        talk = row.get("conversations")
        if type(talk) is not list or len(talk) < 2 or len(talk) % 2:
            return None
        for number, message in enumerate(talk):
            if type(message) is not dict or message.get("from") != _SPEAKERS[number % 2]:
                return None
            text = message.get("value")
            if type(text) is not str or not (text.isascii() or is_text(text)) or "\0" in text:
                return None
            if PLACEHOLDER in text:  # at most once, in the first question
                before, _, after = text.partition(PLACEHOLDER)
                if number or PLACEHOLDER in after:
                    return None
                text = before + after
            if not text.strip():
                return None
        return [self._root.check(self._place(image))]

    def _odd(self, row: Any) -> Iterable[str]:
        return ("rows cut to their first round",) if self.first_round_only and len(row["conversations"]) > 2 else ()

    def _image(self, name: str) -> Path:
        return self._root.file(self._place(name))

    def _place(self, name: str) -> str:
        return name if "/" in name or "\\" in name else f"{self.image_folder}/{name}"

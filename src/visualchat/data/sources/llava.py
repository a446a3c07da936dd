r"""LLaVA-Instruct-150K (arXiv 2304.08485): detail and complex reasoning as single rounds, conversations as dialogues.

A row: {"id": "000000442786", "image": "000000442786.jpg",
        "conversations": [{"from": "human", "value": "What is it?\n<image>"}, {"from": "gpt", "value": "..."}, ...]}
The later mix of 665K rows names images with their folder; multi-image data lists names; rows without `image` are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from visualchat.data.sources.base import Policy, RowSource
from visualchat.data.sources.fields import as_mapping, get_id, get_list, get_names, pair_rounds, place_images, turns
from visualchat.data.tables import load_json
from visualchat.dialogue import Dialogue


@dataclass(frozen=True)
class Llava(RowSource):
    """Rows in LLaVA's form.

    Attributes:
        root: The data root.
        name: What reports call the source.
        files: JSON files of rows, from the root on.
        image_folder: Where images lie that are named without a folder.
        first_round_only: Whether a dialogue ends after its first answer.
        images_first: Whether images move to their turn's start.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "llava"
    files: Sequence[str] = ("llava/detail_23k.json", "llava/complex_reasoning_77k.json")
    image_folder: str = "coco/train2017"
    first_round_only: bool = True
    images_first: bool = True
    on_error: Policy = "error"

    @cached_property
    def _rows(self) -> Sequence[tuple[str, Any]]:
        rows: list[tuple[str, Any]] = []
        for name in self.files:
            found = load_json(self._root.annotation(name))
            if not isinstance(found, list):
                raise ValueError(f"file {name}: expected a list of rows, found {type(found).__name__}")
            rows += ((name, row) for row in found)
        return rows

    def _id(self, row: tuple[str, Any], number: int) -> str:
        file, fields = row
        return f"{file}:{get_id(as_mapping(fields), 'id')}"

    def _dialogue(self, row: tuple[str, Any], id: str) -> Dialogue:
        fields = as_mapping(row[1])
        rounds = pair_rounds(get_list(fields, "conversations"), "from", "value", ("human", "gpt"))
        images = [self._image(name) for name in get_names(fields, "image")]
        contents = place_images([question for question, _ in rounds], images, images_first=self.images_first)
        made = turns(contents, [answer for _, answer in rounds])
        return Dialogue(made[:1] if self.first_round_only else made, id)

    def _image(self, name: str) -> Path:
        bare = len(PurePosixPath(name.replace("\\", "/")).parts) < 2
        return self._root.file(f"{self.image_folder}/{name}" if bare else name)

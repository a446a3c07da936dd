"""SparklesDialogue (arXiv 2308.16463): two rounds, several images, each named by its id in the words around it.

A row: {"dialogue": [{"role": "user", "images": [{"image_id": 804, "caption": "..."}],
                      "content": "What is in IMAGE#804<Img><ImageHere></Img>?"},
                     {"role": "assistant", "content": "IMAGE#804 shows ..."}, ...]}
Later words name an earlier image without the tag. Ids become "image a", "image A" or "the first image", as in the
published training: one style a dialogue.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from visualchat.data.sources.base import Policy, RowSource, content_id
from visualchat.data.sources.fields import arrange, as_mapping, choose, get_id, get_list, pair_rounds, turns
from visualchat.data.sources.rows import Reason, RejectedRowError
from visualchat.data.sources.tables import Table, json_list
from visualchat.dialogue import Content, Dialogue
from visualchat.dialogue.mentions import ORDINALS

Style = Literal["small letter", "capital letter", "ordinal"]
STYLES: tuple[Style, ...] = get_args(Style)

_TAG = "<Img><ImageHere></Img>"
_TAGGED = re.compile(rf"\bIMAGE#(\w+)\s*{_TAG}")
_SENTENCE_STARTS = re.compile(r"(?:^|[.!?:]\s+|\n\s*)$")
_REFERENCE = re.compile(r"\bIMAGE#")


@dataclass(frozen=True)
class Sparkles(RowSource):
    """SparklesDialogueCC and SparklesDialogueVG.

    Attributes:
        root: The data root.
        name: What reports call the source.
        parts: Folders with annotations/<part>.json and images/<id>.jpg, from the root on.
        style: How images are named; "any" draws one style for each dialogue.
        images_first: Whether images move to their turn's start (figure 3) or stay at their name.
        seed: Of the drawn styles.
        on_error: `error` or `skip`.
    """

    root: str | Path
    name: str = "sparkles_dialogue"
    parts: Sequence[str] = ("SparklesDialogueCC", "SparklesDialogueVG")
    style: Style | Literal["any"] = "any"
    images_first: bool = True
    seed: int = 0
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        if self.style not in (*STYLES, "any"):
            raise ValueError(f"{self.name}: style must be any, {', '.join(STYLES)}; found {self.style!r}")
        for part in self.parts:
            yield part, json_list(self._root.annotation(f"{part}/annotations/{part.rpartition('/')[2]}.json"))

    def _id(self, file: str, row: Any) -> str:
        named = next((str(row[n]) for n in ("id", "evaluation_id") if n in as_mapping(row)), None)
        return f"{file}:{named or content_id(json.dumps(row, sort_keys=True).encode())}"

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        messages = [as_mapping(message) for message in get_list(as_mapping(row), "dialogue")]
        rounds = pair_rounds(messages, "role", "content", ("user", "assistant"))
        style = choose(STYLES, id.partition("#")[0], self.seed) if self.style == "any" else self.style
        names: dict[str, str] = {}
        contents: list[tuple[Content, ...]] = []
        answers: list[str] = []
        for number, (question, answer) in enumerate(rounds):
            images = self._images(file, messages[2 * number], names, style)
            pieces = question.split(_TAG)
            if len(pieces) - 1 != len(images):
                raise RejectedRowError(
                    Reason.PLACEHOLDERS,
                    f"round {number + 1}: {len(images)} images, but {len(pieces) - 1} times {_TAG}",
                )
            # names first, on the whole text: a sentence may begin right behind a tag
            pieces = rename("\0".join(pieces), names).split("\0")
            contents.append(_arrange(pieces, images, images_first=self.images_first))
            answers.append(rename(answer, names))
        return Dialogue(turns(contents, answers), id)

    def _images(self, part: str, message: Mapping[str, Any], names: dict[str, str], style: Style) -> list[Path]:
        """The images of a message as the dialogue shows them; their names are added to those of earlier ones."""
        listed = get_list(message, "images") if "images" in message else ()
        keys = [get_id(as_mapping(image), "image_id") for image in listed]
        if not self.images_first:
            keys = in_order_of_tags(message["content"], keys)
        files: list[Path] = []
        for key in keys:
            if key in names:
                raise RejectedRowError(Reason.DUPLICATE, f"image id {key} is given twice, so its name is ambiguous")
            names[key] = image_name(len(names) + 1, style)
            files.append(self._root.file(f"{part}/images/{key}.jpg"))
        return files


def in_order_of_tags(text: str, keys: list[str]) -> list[str]:
    """Image ids in the order in which a text has their tags; as they are where tags stand without ids.

    Raises:
        RejectedRowError: The ids at the tags are others.
    """
    tagged = _TAGGED.findall(text)
    if len(tagged) != text.count(_TAG):
        return keys
    if sorted(tagged) != sorted(keys):
        raise RejectedRowError(
            Reason.PLACEHOLDERS, f"tags stand at images {', '.join(tagged)}, but images holds {', '.join(keys)}"
        )
    return tagged


def image_name(number: int, style: Style) -> str:
    """What words call image `number` (from 1)."""
    if style == "ordinal":
        return f"the {ORDINALS[number - 1]} image" if number <= len(ORDINALS) else f"image number {number}"
    letters = ""
    while number:
        number, letter = divmod(number - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return f"image {letters if style == 'small letter' else letters.upper()}"


def rename(text: str, names: dict[str, str]) -> str:
    """The text with `IMAGE#<id>` replaced as whole words, with a capital where a sentence begins.

    Raises:
        RejectedRowError: The text names an image that the dialogue has not shown.
    """
    if names:
        longest_first = sorted(names, key=len, reverse=True)
        pattern = re.compile(rf"\bIMAGE#({'|'.join(map(re.escape, longest_first))})(?!\w)")

        def name(match: re.Match[str]) -> str:
            words = names[match[1]]
            at_start = _SENTENCE_STARTS.search(match.string[: match.start()].replace("\0", ""))
            return words[0].upper() + words[1:] if at_start else words

        text = pattern.sub(name, text)
    if left := _REFERENCE.search(text):
        raise RejectedRowError(
            Reason.UNKNOWN_IMAGE, f"{text[left.start() : left.start() + 24]!r} names an image that was not shown"
        )
    return text


def _arrange(pieces: list[str], images: list[Path], *, images_first: bool) -> tuple[Content, ...]:
    if images_first:
        return (*images, "".join(pieces).strip())
    pairs: list[tuple[str, Content]] = list(zip(pieces[:-1], images, strict=True))
    return arrange(pairs, pieces[-1], images_first=False)

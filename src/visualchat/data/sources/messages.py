"""Your own dialogues: JSON Lines, JSON or Parquet in the forms that chat data are exchanged in.

A row holds one of
- `messages`: [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What?"}]}]
  where content may also be plain text, and an image OpenAI's {"type": "image_url", "image_url": {"url": "..."}};
- `prompt` and `completion`: the same, in two lists (TRL);
- `conversation`: the same (Mantis-Instruct);
- `conversations`: [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "..."}] (LLaMA-Factory, LLaVA);
- `texts`: [{"user": "What?", "assistant": "..."}] (the Cauldron).
Each of these lists may also be text that holds the list as JSON.

Images stand in the content itself (`path`, `bytes`, `base64`, `image` or a data URL), or in a column `images` (or
`image`) beside it: file names, bytes, or {"bytes": ..., "path": ...}. With such a column, and only then, an image item
without data and a "<image>" in a plain-text content each stand for the next image; without any of them, images open the
first turn.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visualchat.data.sources.base import Policy, RowSource, content_id
from visualchat.data.sources.fields import PLACEHOLDER, arrange, as_mapping, get_list, join_words, without_placeholder
from visualchat.data.sources.json_text import BrokenRow, parse_json
from visualchat.data.sources.root import names
from visualchat.data.sources.rows import Reason, RejectedRowError
from visualchat.data.sources.tables import JsonLines, ParquetTable, Table, json_list
from visualchat.dialogue import Caption, Content, Dialogue
from visualchat.dialogue.messages import dialogue_from_messages

_SHAREGPT = {"human": "user", "gpt": "assistant", "system": "system"}
_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".json.gz")
_ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet", ".jsonl.gz")
_PATH_KEYS = ("path", "image")
_DATA_KEYS = ("image", "path", "bytes", "base64", "url")


@dataclass(frozen=True)
class Messages(RowSource):
    """Rows in the messages format.

    Attributes:
        root: The data root; images that are named by a path lie under it.
        files: From the root on, each ending in .jsonl, .ndjson, .json (one list), .parquet or .jsonl.gz.
        image_folder: Where the images lie that rows name, from the root on.
        name: What reports call the source.
        images_first: Whether images move to their turn's start (figure 3) or stay between the words.
        on_error: `error` or `skip`.
    """

    root: str | Path
    files: str | Sequence[str]
    image_folder: str = ""
    name: str = "messages"
    images_first: bool = False
    on_error: Policy = "error"

    def _open(self) -> Iterator[tuple[str, Table]]:
        return ((name, _open(self._root.annotation(name))) for name in names(self.files))

    def _id(self, file: str, row: Any) -> str:
        fields = as_mapping(row)
        id = fields.get("id")
        if isinstance(id, str | int) and not isinstance(id, bool) and id != "":
            return f"{file}:{id}"
        return f"{file}:{content_id(json.dumps(fields, sort_keys=True, default=_plain).encode())}"

    def _dialogue(self, file: str, row: Any, id: str) -> Dialogue:
        fields = as_mapping(row)
        messages = self._spoken(fields)
        images = _Waiting([self._column_image(image) for image in _column(fields)])
        if images.all and not any(_slots(message) for message in messages):
            first = next(number for number, message in enumerate(messages) if message["role"] == "user")
            slots = [{"type": "image"} for _ in images.all]
            messages[first] = {"role": "user", "content": [*slots, *_items(messages[first]["content"])]}
        contents = [self._content(message, images) for message in messages]
        images.check()
        prepared = [{"role": m["role"], "content": c} for m, c in zip(messages, contents, strict=True)]
        try:
            dialogue = dialogue_from_messages(prepared, id)
        except ValueError as error:
            raise RejectedRowError(Reason.FORM, str(error)) from error
        if not self.images_first:
            return dialogue
        turns = (replace(turn, content=_images_first(turn.content)) for turn in dialogue.turns)
        return replace(dialogue, turns=tuple(turns))

    def _odd(self, row: Any) -> Iterable[str]:
        fields = as_mapping(row)
        texts = [] if _column(fields) else [message["content"] for message in self._spoken(fields)]
        if any(isinstance(text, str) and PLACEHOLDER in text for text in texts):
            yield f"rows with {PLACEHOLDER} as plain text: they have no column images"

    def _spoken(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The row's messages: of a system first, perhaps, then of user and assistant in turn."""
        messages = messages_of(row)
        _check_roles(messages)
        return messages

    def _content(self, message: Mapping[str, Any], images: _Waiting) -> Any:
        """The content with every image in place, checked to lie under the root."""
        content = message["content"]
        if message["role"] != "user":
            return without_placeholder(content) if isinstance(content, str) and images.all else content
        if isinstance(content, str) and not images.all:
            return content
        items = content if not isinstance(content, str) else _split(content)
        if not isinstance(items, list | tuple):
            raise RejectedRowError(Reason.FORM, f"content must be a text or a list, found {type(items).__name__}")
        prepared = [self._item(item, images) for item in items]
        if not any(isinstance(item.get("text"), str) and item["text"].strip() for item in prepared):
            raise RejectedRowError(Reason.EMPTY_QUESTION, "a user message has no words")
        return prepared

    def _item(self, item: Any, images: _Waiting) -> Mapping[str, Any]:
        fields = as_mapping(item)
        if fields.get("type") == "image_url":
            return {"type": "image", "image": self._address(fields.get("image_url"))}
        if fields.get("type") != "image":
            return fields
        key = next((key for key in _DATA_KEYS if fields.get(key) is not None), None)
        if key is None:
            return {"type": "image", "image": images.take(fields.get("index"))}
        value = fields[key]
        if isinstance(value, Mapping):
            return {"type": "image", "image": self._column_image(value)}
        if key == "url" and isinstance(value, str):
            return {"type": "image", "image": self._address(value)}
        if key in _PATH_KEYS and isinstance(value, str):
            return {"type": "image", "image": self._file(value)}
        return {"type": "image", key: value}

    def _address(self, value: Any) -> Path | bytes:
        """The image of OpenAI's {"url": ...}: a data URL or a file under the root."""
        url = value.get("url") if isinstance(value, Mapping) else value
        if isinstance(url, str) and "://" in url[:12]:
            raise RejectedRowError(Reason.FORM, f"an image must be a data URL or a file, nothing is fetched: {url:.60}")
        return self._column_image(url)

    def _file(self, name: str) -> Path:
        return self._root.file(f"{self.image_folder}/{name}" if self.image_folder and name else name)

    def _column_image(self, value: Any) -> Path | bytes:
        if isinstance(value, Mapping):
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if isinstance(value, bytes):
            return value
        if isinstance(value, str) and value.startswith("data:image/"):
            try:
                return base64.b64decode(value.partition(",")[2], validate=True)
            except ValueError as error:
                raise RejectedRowError(Reason.FORM, f"a data URL is not valid base64: {error}") from error
        if isinstance(value, str):
            return self._file(value)
        raise RejectedRowError(Reason.FORM, f"expected a file name or bytes of an image, found {type(value).__name__}")


class _Waiting:
    """The images of a row's column, each to be taken once."""

    def __init__(self, images: list[Path | bytes]) -> None:
        self.all = images
        self.taken: list[int] = []
        self.slots = 0

    def take(self, index: Any = None) -> Path | bytes:
        """The image of that index, or the next."""
        place = index if isinstance(index, int) and not isinstance(index, bool) else self.slots
        self.slots += 1
        self.taken.append(place)
        if 0 <= place < len(self.all):
            return self.all[place]
        raise RejectedRowError(
            Reason.PLACEHOLDERS, f"no image for place {self.slots}; the row brings {len(self.all)} images"
        )

    def check(self) -> None:
        """Every image was taken once.

        Raises:
            RejectedRowError: It was not.
        """
        if sorted(self.taken) != list(range(len(self.all))):
            raise RejectedRowError(
                Reason.PLACEHOLDERS, f"{len(self.all)} images, but {self.slots} places for them ({self.taken})"
            )


def _open(path: Path) -> Table:
    if path.name.endswith(_LINES):
        return JsonLines(path)
    if path.suffix == ".json":
        return json_list(path)
    if path.suffix == ".parquet":
        return ParquetTable(path)
    raise ValueError(f"file {path.name}: expected a name that ends in {', '.join(_ENDINGS)}")


def _list(row: Mapping[str, Any], name: str) -> Sequence[Any]:
    """A field that must be a list, or text that holds one as JSON."""
    if isinstance(row[name], str):
        parsed = parse_json(row[name].encode("utf-8", "replace"))
        row = {name: row[name] if isinstance(parsed, BrokenRow) else parsed}
    return get_list(row, name)


def messages_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row's messages, whichever of the forms it has."""
    name = next((name for name in ("messages", "conversation") if row.get(name) is not None), None)
    if name is not None:
        messages = _list(row, name)
    elif row.get("prompt") is not None and row.get("completion") is not None:
        messages = [*_list(row, "prompt"), *_list(row, "completion")]
    elif row.get("conversations") is not None:
        spoken = [as_mapping(message) for message in _list(row, "conversations")]
        messages = [{"role": _role(m.get("from")), "content": m.get("value")} for m in spoken]
    elif row.get("texts") is not None:
        rounds = [as_mapping(message) for message in _list(row, "texts")]
        messages = [{"role": role, "content": m.get(role)} for m in rounds for role in ("user", "assistant")]
    else:
        raise RejectedRowError(
            Reason.FORM,
            "expected messages, conversation, prompt and completion, conversations, or texts; "
            f"found {', '.join(map(str, row))[:80]}",
        )
    if isinstance(row.get("system"), str) and row["system"] and "conversations" in row:
        messages = [{"role": "system", "content": row["system"]}, *messages]
    return [{"role": m.get("role"), "content": m.get("content")} for m in map(as_mapping, messages)]


def _role(name: Any) -> Any:
    return _SHAREGPT.get(name, name) if isinstance(name, str) else name


def _check_roles(messages: Sequence[Mapping[str, Any]]) -> None:
    roles = [message["role"] for message in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    for number, role in enumerate(spoken):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            raise RejectedRowError(Reason.ROLE, f"message {number + 1}: expected role {expected!r}, found {role!r:.40}")
    if len(spoken) % 2 or not spoken:
        raise RejectedRowError(Reason.NO_ANSWER, f"{len(spoken)} messages of user and assistant")
    for message in messages:
        check_words(message)


def check_words(message: Mapping[str, Any]) -> None:
    """Refuse a message of whitespace."""
    content = message["content"]
    if isinstance(content, str) and not content.strip():
        reasons = {"user": Reason.EMPTY_QUESTION, "assistant": Reason.EMPTY_ANSWER}
        raise RejectedRowError(reasons.get(message["role"], Reason.FORM), f"content is {content!r}")


def _column(row: Mapping[str, Any]) -> Sequence[Any]:
    """The images beside a row's messages."""
    value = row.get("images") if row.get("images") is not None else row.get("image")
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


def _slots(message: Mapping[str, Any]) -> int:
    """How many images a user message leaves room for."""
    content = message["content"]
    if message["role"] != "user":
        return 0
    if isinstance(content, str):
        return content.count(PLACEHOLDER)
    items = content if isinstance(content, list | tuple) else ()
    return sum(isinstance(item, Mapping) and item.get("type") == "image" for item in items)


def _items(content: Any) -> Sequence[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _split(text: str) -> list[dict[str, Any]]:
    """A text with placeholders as items."""
    *before, last = text.split(PLACEHOLDER)
    pairs: list[tuple[str, Content]] = [(piece, b"") for piece in before]
    return [
        {"type": "text", "text": item} if isinstance(item, str) else {"type": "image"}
        for item in arrange(pairs, last, images_first=False)
    ]


def _images_first(content: tuple[Content, ...]) -> tuple[Content, ...]:
    images = [item for item in content if not isinstance(item, str | Caption)]
    words = [item.strip() for item in content if isinstance(item, str)]
    return (*images, join_words([word for word in words if word]))


def _plain(value: Any) -> str:
    """What stands for a value that JSON cannot hold, when a row's content is hashed."""
    return content_id(value) if isinstance(value, bytes) else repr(value)

"""Dialogues -> Parquet shards in the messages format, images inside: one folder that needs nothing else.

`visualchat.data.sources.Messages` reads them back. Columns: `id`, and `messages`, a list of
{"role", "content": [{"type", "text", "bytes"}]}; a column that an item does not need is null.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from visualchat.dialogue import Caption, Content, Dialogue
from visualchat.files import whole_file
from visualchat.images import ArchivedImage, ImageInput


def message_row(dialogue: Dialogue) -> dict[str, Any]:
    """A dialogue as one row; encoded images stay as they are byte for byte, images in memory become PNG files.

    Raises:
        ValueError: It holds a caption, which the format does not know, or a file cannot be read.
    """
    messages = [] if dialogue.system is None else [{"role": "system", "content": [_text(dialogue.system)]}]
    for turn in dialogue.turns:
        messages.append({"role": "user", "content": [_item(item, dialogue.id) for item in turn.content]})
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": [_text(turn.answer)]})
    return {"id": dialogue.id, "messages": messages}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "bytes": None}


def _item(item: Content, name: str) -> dict[str, Any]:
    if isinstance(item, str):
        return _text(item)
    if isinstance(item, Caption):
        raise ValueError(f"{name}: the messages format holds images and text, found a caption: {item.text!r:.80}")
    return {"type": "image", "text": None, "bytes": _encoded(item, name)}


def _encoded(image: ImageInput, name: str) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, ArchivedImage):
        return image.read()
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()
    try:
        return image.read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: image file {str(image)!r} cannot be read: {error.strerror}") from error


def write_shards(dialogues: Iterable[Dialogue], folder: Path, *, rows: int = 1000, group: int = 16) -> list[Path]:
    """Write `shard-00000.parquet` and so on; each appears only when it is whole.

    Args:
        dialogues: In the order in which they shall stand.
        folder: Made if it does not exist; must hold no shards yet.
        rows: Dialogues a shard.
        group: Dialogues a row group, the least that is read at a time.

    Raises:
        ValueError: pyarrow is missing, the folder holds shards, or a dialogue cannot be written.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("writing Parquet needs the package pyarrow: pip install pyarrow") from error
    folder.mkdir(parents=True, exist_ok=True)
    if found := sorted(path.name for path in folder.glob("shard-*.parquet")):
        raise ValueError(f"folder {str(folder)!r} holds {len(found)} shards already, such as {found[0]}; name another")
    item = pyarrow.struct([("type", pyarrow.string()), ("text", pyarrow.string()), ("bytes", pyarrow.binary())])
    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.list_(item))])
    schema = pyarrow.schema([("id", pyarrow.string()), ("messages", pyarrow.list_(message))])
    paths: list[Path] = []
    for number, shard in enumerate(_chunks(dialogues, rows)):
        path = folder / f"shard-{number:05d}.parquet"
        with whole_file(path) as draft, pyarrow.parquet.ParquetWriter(draft, schema) as writer:
            for start in range(0, len(shard), group):
                part = [message_row(dialogue) for dialogue in shard[start : start + group]]
                writer.write_table(pyarrow.Table.from_pylist(part, schema))
        paths.append(path)
    return paths


def _chunks(dialogues: Iterable[Dialogue], size: int) -> Iterator[list[Dialogue]]:
    chunk: list[Dialogue] = []
    for dialogue in dialogues:
        chunk.append(dialogue)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk

"""The images of a dialogue decoded one after the other: each once, and none too large for memory."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace

from PIL import Image

from visualchat.data.sources.rows import printable
from visualchat.dialogue import Caption, Content, Dialogue
from visualchat.images import ImageInput
from visualchat.images.decode import MAX_ROW_PIXELS, decode_image


def decoded_images(dialogue: Dialogue, known: Container[ImageInput]) -> Iterator[tuple[ImageInput, Image.Image | None]]:
    """Each image of a dialogue and its pixels, decoded when it is asked for; None for those that are known.

    Raises:
        ValueError: An image cannot be read, or all together are too large; dialogue and image are named.
    """
    images, pixels = dialogue.images, 0
    for number, item in enumerate(images, start=1):
        if not isinstance(item, Image.Image) and item in known:
            yield item, None
            continue
        try:
            image = decode_image(item, "it")
            pixels += image.width * image.height
            if pixels > MAX_ROW_PIXELS:
                raise ValueError(f"the images up to it have {pixels} pixels, at most {MAX_ROW_PIXELS} are allowed")
        except ValueError as error:
            raise ValueError(f"{printable(dialogue.id)}, image {number} of {len(images)}: {error}") from error
        yield item, image


def check_images(dialogue: Dialogue) -> None:
    """Decode every image of a dialogue, one after the other.

    Raises:
        ValueError: An image cannot be read, or all together are too large; dialogue and image are named.
    """
    for _ in decoded_images(dialogue, ()):
        pass


def with_decoded_images(dialogue: Dialogue) -> Dialogue:
    """The dialogue with every image decoded, equal files and bytes once.

    Raises:
        ValueError: An image cannot be read; dialogue and image are named.
    """
    decoded: dict[ImageInput, Image.Image] = {}
    images: list[Image.Image] = []
    for item, image in decoded_images(dialogue, decoded):
        if image is not None and not isinstance(item, Image.Image):
            decoded[item] = image
        images.append(decoded[item] if image is None else image)
    waiting = iter(images)
    turns = []
    for turn in dialogue.turns:
        content: list[Content] = [item if isinstance(item, str | Caption) else next(waiting) for item in turn.content]
        turns.append(replace(turn, content=tuple(content)))
    return replace(dialogue, turns=tuple(turns))

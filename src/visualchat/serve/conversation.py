"""From a request's messages to a request to the engine. Runs in a thread: it decodes images and tokenizes.

Images come inside the request alone: nothing is fetched, no file is read. Text is text, whatever it says: slots of
images are made by the structure of a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from visualchat.dialogue.messages import dialogue_from_messages
from visualchat.engine import Request
from visualchat.images.decode import FORMATS, MAX_ASPECT, MAX_PIXELS, decode_image
from visualchat.images.inputs import image_input
from visualchat.model import VisualChatProcessor
from visualchat.serve.errors import ApiError, unknown_model
from visualchat.serve.protocol import ChatRequest, ImagePart, Message
from visualchat.serve.settings import Limits, Settings
from visualchat.serve.vocabulary import Vocabulary

ROLES = {"developer": "system"}
"""What a role is called here where the name differs."""

UNREADABLE = (
    f"it cannot be read as an image: expected an undamaged {', '.join(FORMATS)} file of at most {MAX_PIXELS} pixels, a "
    f"side at most {MAX_ASPECT} times the other"
)
"""The same for all that can be wrong with a file: libraries' own words may tell what a client should not learn."""


def engine_requests(
    asked: ChatRequest, processor: VisualChatProcessor, vocabulary: Vocabulary, settings: Settings, scope: str
) -> list[Request]:
    """What the engine is asked: as many times as the request wants answers.

    Raises:
        ApiError: The request is beyond a limit, or its messages form no conversation with a question at its end.
    """
    if asked.model != settings.name:
        raise unknown_model([settings.name])
    tokens = settings.max_new_tokens if asked.most_tokens is None else asked.most_tokens
    if tokens > settings.limits.tokens:
        param = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
        raise ApiError(400, f"{param} is {tokens}: at most {settings.limits.tokens} are allowed", param=param)
    if asked.messages[-1].role != "user":
        raise ApiError(
            400, f"the last message is the {asked.messages[-1].role}'s: expected the user's", param="messages"
        )
    if asked.logprobs:
        vocabulary.check("logprobs")
    schema = asked.response_format.schema_followed
    try:
        dialogue = dialogue_from_messages(with_images(asked.messages, settings.limits))
        first = Request.of(
            processor,
            dialogue,
            max_new_tokens=tokens,
            temperature=settings.temperature if asked.temperature is None else asked.temperature,
            top_p=asked.top_p,
            seed=asked.seed,
            stop=tuple(asked.stop),
            constraint=None if schema is None else vocabulary.json(schema),
            logprobs=asked.top_logprobs if asked.logprobs else None,
            scope=scope,
        )
    except ValueError as error:  # our own words: of roles, of empty questions
        raise ApiError(400, str(error), param="messages") from None
    if asked.seed is None:
        return [first] * asked.n
    return [replace(first, seed=asked.seed + index) for index in range(asked.n)]


def with_images(messages: Sequence[Message], limits: Limits) -> list[dict[str, Any]]:
    """The messages with their images decoded.

    Raises:
        ApiError: There are too many images or pixels, or one cannot be read.
    """
    count = sum(isinstance(part, ImagePart) for message in messages for part in message.content)
    if count > limits.images:
        raise ApiError(400, f"there are {count} images: at most {limits.images} are allowed", param="messages")
    found, pixels = [], 0
    for number, message in enumerate(messages):
        items: list[dict[str, Any]] = []
        for place, part in enumerate(message.content):
            if not isinstance(part, ImagePart):
                items.append({"type": "text", "text": part.text})
                continue
            assert part.image_url is not None  # uuids alone were filled in
            image = read_image(part.image_url.url, f"messages[{number}].content[{place}].image_url.url")
            pixels += image.width * image.height
            check_pixels(pixels, limits, "messages")
            items.append({"type": "image", "image": image})
        found.append({"role": ROLES.get(message.role, message.role), "content": items})
    return found


def check_pixels(pixels: int, limits: Limits, param: str) -> None:
    """Refuse more pixels than a request may have.

    Raises:
        ApiError: They are more.
    """
    if pixels > limits.pixels:
        message = f"the images have more than {limits.pixels} pixels together; send smaller ones"
        raise ApiError(400, message, param=param, code="too_many_pixels")


def read_image(url: str, place: str) -> Image.Image:
    """The image of a data URL that stands at a place of a request.

    Raises:
        ApiError: It is none, or damaged.
    """
    if not url.startswith("data:"):
        message = f"{place}: expected data:image/...;base64,...: this server fetches no address and reads no file"
        raise ApiError(400, message, param=place, code="invalid_image_url")
    try:
        encoded = image_input(url, place)
    except ValueError:
        message = f"{place}: expected data:image/...;base64, and valid base64 behind it"
        raise ApiError(400, message, param=place, code="invalid_image_url") from None
    try:
        return decode_image(encoded)
    except ValueError:
        raise ApiError(400, f"{place}: {UNREADABLE}", param=place, code="invalid_image") from None

"""What an engine is asked, and what it answers: token ids of a whole conversation in, those of one answer out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from visualchat.attention import Modality
from visualchat.dialogue import Dialogue, Turn
from visualchat.engine.answering import Tokens, image_size
from visualchat.images.decode import decode_image
from visualchat.model import VisualChatProcessor
from visualchat.model.configuration_visualchat import VisualChatConfig

Finish = Literal["stop", "length", "cancelled", "error"]
"""Why an answer ended: an end token or a stop text, `max_new_tokens`, its client, an error."""


class QueueFull(RuntimeError):
    """As many requests as an engine takes are running and waiting."""


class NotStored(RuntimeError):
    """Images' states are not kept, and why."""


class Constraint(Protocol):
    """What one answer may say, token by token."""

    def allowed(self) -> Tensor:
        """Which tokens may come next, (V,) booleans; the end token is one of them where the answer may end."""
        ...

    def take(self, token: int) -> None:
        """One of them came."""
        ...


@dataclass(frozen=True, eq=False)
class Request:
    """A conversation up to an answer, and how to answer.

    Attributes:
        tokens: All of the conversation.
        images: All of its images, decoded, in order.
        max_new_tokens: The most tokens of the answer.
        temperature: 0 for the likeliest token, else the temperature of sampling.
        top_p: Sample from the likeliest tokens that have so much of the probability; None as the model is configured.
        seed: Of sampling; None to draw from `generator`.
        generator: Of the CPU; it must not serve two requests at once. None to draw from torch's global one.
        stop: The answer ends before the first of these texts.
        stop_ids: It ends at these tokens, too, not only at the processor's end token.
        constraint: Makes what the answer must keep to; None where it may say anything.
        logprobs: Tell the log-probability of each token and of so many likeliest ones in its place; None not to.
        only_images: Compute the images, which are then known, and answer nothing.
        scope: What was computed for requests of one scope is reused for those of the same alone.

    Raises:
        ValueError: A setting is out of range.
    """

    tokens: Tokens
    images: Sequence[Image.Image] = ()
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = None
    generator: torch.Generator | None = None
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    constraint: Callable[[], Constraint] | None = None
    logprobs: int | None = None
    only_images: bool = False
    scope: str = ""

    def __post_init__(self) -> None:
        check_settings(self.max_new_tokens, self.temperature, self.stop, self.top_p, self.seed)
        if self.logprobs is not None and self.logprobs < 0:
            raise ValueError(f"logprobs must be 0 or more, found {self.logprobs!r}")
        if self.seed is not None and self.generator is not None:
            raise ValueError("expected a seed or a generator, found both")

    @classmethod
    def of(cls, processor: VisualChatProcessor, dialogue: Dialogue, **settings: Any) -> Request:
        """The request for the answer of a dialogue's last turn, which is open; `settings` are further attributes.

        Raises:
            ValueError: The last turn has an answer, an image cannot be read, or a setting is out of range.
        """
        if dialogue.turns[-1].answer is not None:
            raise ValueError(f"{dialogue.id}: the last turn has an answer already; leave it open (None) to ask for one")
        encoding = processor.encode(dialogue)
        named = enumerate(dialogue.images, start=1)
        images = [decode_image(image, f"{dialogue.id}, image {number}") for number, image in named]
        return cls(Tokens(encoding.input_ids, encoding.mm_token_type_ids, encoding.unit_ids), images, **settings)

    @classmethod
    def to_know(cls, processor: VisualChatProcessor, image: Image.Image, number: int = 1, **settings: Any) -> Request:
        """The request to compute an image, decoded, so that it is known as image `number` of any conversation."""
        encoding = processor.encode(Dialogue((Turn.ask("?", [image] * number),)))
        entries = zip(encoding.input_ids, encoding.mm_token_type_ids, encoding.unit_ids, strict=True)
        ids, modality, units = zip(*(entry for entry in entries if entry[2] == number), strict=True)
        return cls(Tokens([*ids], [*modality], [*units]), [image], only_images=True, **settings)

    def check(self, config: VisualChatConfig) -> None:
        """Refuse what a model cannot answer.

        Raises:
            ValueError: There are no tokens, they do not fit the images, or the model cannot hold them and the answer.
        """
        length = len(self.tokens.ids)
        if not length:
            raise ValueError("a request needs tokens, found none")
        if not length == len(self.tokens.modality) == len(self.tokens.units):
            raise ValueError(f"{length} ids need as many entries of modality and of units")
        slots, size = self.image_tokens, image_size(config)
        if slots != size * len(self.images):
            raise ValueError(
                f"image slots and images do not match: {slots} image tokens, {len(self.images)} images of {size} each"
            )
        text_config: Any = config.text_config
        limit = text_config.max_position_embeddings
        if length + self.max_new_tokens > limit:
            raise ValueError(
                f"the conversation has {length} tokens and {self.max_new_tokens} are kept for the answer "
                f"(max_new_tokens): more than the {limit} that the model can hold"
            )

    @property
    def image_tokens(self) -> int:
        """How many of its tokens are of images."""
        return sum(kind == Modality.IMAGE for kind in self.tokens.modality)


def check_settings(
    max_new_tokens: int,
    temperature: float,
    stop: Sequence[str],
    top_p: float | None = None,
    seed: int | None = None,
) -> None:
    """Refuse settings of an answer that are out of range: the attributes of a `Request`.

    Raises:
        ValueError: One is.
    """
    for name, found, fits, expected in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "1 or more"),
        ("temperature", temperature, 0 <= temperature < float("inf"), "0 or more"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "more than 0 and at most 1"),
        ("seed", seed, seed is None or -(1 << 63) <= seed < 1 << 64, "a number of 64 bits"),
        ("stop", stop, not isinstance(stop, str) and "" not in stop, "texts that are not empty"),
    ):
        if not fits:
            raise ValueError(f"{name} must be {expected}, found {found!r}")


@dataclass(frozen=True)
class Score:
    """How likely a token was, by the model alone: before temperature, `top_p` and constraints.

    Attributes:
        token: The one that was chosen.
        logprob: Of it, in nats.
        top: The likeliest in its place, the first of them first, each with its own.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Usage:
    """What a request took, in tokens.

    Attributes:
        prompt_tokens: Of the conversation up to the answer.
        cached_tokens: Those of them whose states were known: from a kept conversation, or an image of the store.
        image_tokens: Those of them that are of images.
        answer_tokens: Of the answer.
    """

    prompt_tokens: int
    cached_tokens: int
    image_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        ids: The answer's tokens, the end token or those that make up a stop text included.
        text: What they say, without special tokens and what follows the beginning of a stop text.
        finish: Why it ended.
        usage: What it took.
        first_token: Seconds from `submit` to its first token; None where there is none.
        seconds: From `submit` to its end.
    """

    ids: list[int]
    text: str
    finish: Finish
    usage: Usage
    first_token: float | None
    seconds: float

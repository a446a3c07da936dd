"""OpenAI's chat completions: what a request may hold, and the form of responses.

Strict: a field that the server does not obey is refused by its name, unless its value asks for nothing. Names are those
of https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from visualchat.engine import Answer
from visualchat.serve.errors import ApiError

ASKS_NOTHING: dict[str, Any] = {
    "frequency_penalty": 0,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "logprobs": False,
    "modalities": ["text"],
    "parallel_tool_calls": False,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "service_tier": "auto",
    "store": False,
    "tool_choice": "none",
    "tools": [],
    "top_logprobs": 0,
}
"""Fields that are refused with any value but this one, or null."""

MOST_CHOICES = 8
"""Answers to one request."""

LEAST_TEMPERATURE = 0.01
"""Of sampling: logits divided by less overflow."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class TextPart(_Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """An image within its address; `detail` has no effect, as every image has the same number of tokens."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """What one side said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Part]

    @field_validator("content", mode="before")
    @classmethod
    def _as_parts(cls, given: Any) -> Any:
        return [{"type": "text", "text": given}] if isinstance(given, str) else given


class StreamOptions(_Strict):
    """What a stream tells beside its text."""

    include_usage: bool = False


class ChatRequest(_Strict):
    """The body of a request."""

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default_factory=list, max_length=4)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63 - MOST_CHOICES)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    # labels that clients may give a request: they change no answer
    user: str = ""
    safety_identifier: str = ""
    prompt_cache_key: str = ""

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_nothing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if name not in ASKS_NOTHING or value != ASKS_NOTHING[name]}

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @field_validator("temperature")
    @classmethod
    def _not_tiny(cls, given: float | None) -> float | None:
        if given is not None and 0 < given < LEAST_TEMPERATURE:
            raise ValueError(f"expected 0, or {LEAST_TEMPERATURE} to 2")
        return given

    @model_validator(mode="after")
    def _agrees(self) -> ChatRequest:
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            raise ValueError(f"max_tokens and max_completion_tokens are one thing, found {both[0]} and {both[1]}")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Of an answer; None where the request does not say."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def read_request(body: bytes) -> ChatRequest:
    """The request that a body holds.

    Raises:
        ApiError: It is not JSON, or a field is missing, wrong or not obeyed; the first one is named.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        kind, place = first["type"], _path(first["loc"])
        if kind == "json_invalid":
            raise ApiError(400, "the body is not valid JSON", code="invalid_json") from None
        if kind == "extra_forbidden":
            message = f"{place} is not supported by this server; leave it out"
            raise ApiError(400, message, param=place, code="unsupported_parameter") from None
        what = first["msg"].removeprefix("Value error, ")
        raise ApiError(400, f"{place}: {what}" if place else what, param=place or None, code="invalid_value") from None


def _path(place: Sequence[str | int]) -> str:
    """Where in the body something is, as programmers write it."""
    if len(place) > 4 and place[2] == "content":  # behind it pydantic names the type of the part
        place = [*place[:4], *place[5:]]
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """What a request took: its prompt counts once, as the first of its answers found it."""
    prompt = answers[0].usage
    said = sum(answer.usage.answer_tokens for answer in answers)
    return {
        "prompt_tokens": prompt.prompt_tokens,
        "completion_tokens": said,
        "total_tokens": prompt.prompt_tokens + said,
        "prompt_tokens_details": {"cached_tokens": prompt.cached_tokens, "image_tokens": prompt.image_tokens},
    }


@dataclass(frozen=True)
class Envelope:
    """What all parts of one response share.

    Attributes:
        model: Its name.
        with_usage: Whether a stream ends with what it took.
        id: Names the response.
        created: When, in seconds since 1970.
    """

    model: str
    with_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def _of(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """A response that is sent at once."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "finish_reason": answer.finish,
                "logprobs": None,
            }
            for index, answer in enumerate(answers)
        ]
        return {**self._of("chat.completion", choices), "usage": usage(answers)}

    def piece(self, index: int, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        """A part of a stream."""
        choices = [{"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}]
        return {**self._of("chat.completion.chunk", choices), **({"usage": None} if self.with_usage else {})}

    def end(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The last part of a stream that tells what it took."""
        return {**self._of("chat.completion.chunk", []), "usage": usage(answers)}

"""OpenAI's chat completions: what a request may hold, and the form of responses.

Strict: a field that the server does not obey is refused by its name, unless its value asks for nothing. Names are those
of https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from visualchat.engine import Answer
from visualchat.serve.errors import ApiError

ASKS_NOTHING: dict[str, Any] = {
    "frequency_penalty": 0,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "modalities": ["text"],
    "parallel_tool_calls": False,
    "presence_penalty": 0,
    "service_tier": "auto",
    "store": False,
    "tool_choice": "none",
    "tools": [],
}
"""Fields that are refused with any value but this one, or null."""

MOST_CHOICES = 8
"""Answers to one request."""

MOST_LOGPROBS = 20
"""Likeliest tokens in the place of each."""

LEAST_TEMPERATURE = 0.01
"""Of sampling: logits divided by less overflow."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With null for each field that may be left out."""
        found = handler.resolve_ref_schema(handler(core))
        null = {"type": "null"}
        for name, value in found.get("properties", {}).items():
            value.pop("default", None)
            if name not in found.get("required", []) and null not in value.get("anyOf", []):
                found["properties"][name] = {"anyOf": [value, null]}
        return found


class TextPart(_Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """An image within its address; `detail` has no effect, as every image has the same number of tokens."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class _Shown(_Strict):
    image_url: ImageUrl | None = None
    uuid: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    @model_validator(mode="after")
    def _shows(self) -> Self:
        if self.image_url is None and self.uuid is None:
            raise ValueError("expected image_url, or the uuid of an image that was shown before, found neither")
        return self


class ImagePart(_Shown):
    """An image of a message, by its URL, by the `uuid` of one that was shown before, or by both, to show it later."""

    type: Literal["image_url"]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """What one side said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Part]

    @field_validator("content", mode="before", json_schema_input_type=str | list[Part])
    @classmethod
    def _as_parts(cls, given: Any) -> Any:
        return [{"type": "text", "text": given}] if isinstance(given, str) else given


def _asks_nothing(name: str, value: Any) -> bool:
    if name not in ASKS_NOTHING or isinstance(value, bool) != isinstance(ASKS_NOTHING[name], bool):
        return False
    return bool(value == ASKS_NOTHING[name])


class StreamOptions(_Strict):
    """What a stream tells beside its text."""

    include_usage: bool = False


class JsonSchema(_Strict):
    """What an answer's JSON must keep to. `strict` or not, it does."""

    name: str = Field(pattern="^[a-zA-Z0-9_-]{1,64}$")
    description: str = ""
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool = True


class ResponseFormat(_Strict):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _agrees(self) -> ResponseFormat:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError(f"a json_schema belongs to type json_schema, and to no other; the type is {self.type}")
        return self

    @property
    def schema_followed(self) -> dict[str, Any] | None:
        """Which the answer keeps to; None where it may say anything."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


Stop = Annotated[str, Field(min_length=1, max_length=200)]


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
    stop: list[Stop] = Field(default_factory=list, max_length=4)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63 - MOST_CHOICES)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_LOGPROBS)
    response_format: ResponseFormat = Field(default_factory=lambda: ResponseFormat(type="text"))
    # labels that clients may give a request: they change no answer
    user: str = ""
    safety_identifier: str = ""
    prompt_cache_key: str = ""

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_nothing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if not _asks_nothing(name, value)}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With those fields that may be there if they ask for nothing."""
        found = super().__get_pydantic_json_schema__(core, handler)
        found["properties"] |= {name: {"enum": [value, None]} for name, value in ASKS_NOTHING.items()}
        return found

    @field_validator("stop", mode="before", json_schema_input_type=Stop | list[Stop])
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
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Of an answer; None where the request does not say."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class ImageRequest(_Shown):
    """The body of a request to know an image before anyone asks about it.

    Attributes:
        number: The one it will have in its conversation; it counts for some kinds of attention.
    """

    number: int = Field(1, ge=1)


Asked = TypeVar("Asked", bound=BaseModel)


def read_request(kind: type[Asked], body: bytes) -> Asked:
    """The request of a kind that a body holds.

    Raises:
        ApiError: It is not JSON, or a field is missing, wrong or not obeyed; the first one is named.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        mistake, place = first["type"], _path(first["loc"])
        if mistake == "json_invalid":
            raise ApiError(400, "the body is not valid JSON", code="invalid_json") from None
        if mistake == "extra_forbidden":
            message = f"{place} is not supported by this server; leave it out"
            raise ApiError(400, message, param=place, code="unsupported_parameter") from None
        what = first["msg"].removeprefix("Value error, ")
        raise ApiError(400, f"{place}: {what}" if place else what, param=place or None, code="invalid_value") from None


def _path(place: Sequence[str | int]) -> str:
    """Where in the body something is, as programmers write it."""
    if len(place) > 4 and place[2] == "content":  # behind it pydantic names the type of the part
        place = [*place[:4], *place[5:]]
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")


Logprobs = Sequence[dict[str, Any]] | None
"""Those of tokens in OpenAI's form; None where they are not asked for."""


def _logprobs(given: Logprobs) -> dict[str, Any] | None:
    return None if given is None else {"content": [*given], "refusal": None}


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

    def whole(self, answers: Sequence[Answer], logprobs: Sequence[Logprobs]) -> dict[str, Any]:
        """A response that is sent at once, with the log-probabilities of each answer's tokens."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "finish_reason": answer.finish,
                "logprobs": _logprobs(scores),
            }
            for index, (answer, scores) in enumerate(zip(answers, logprobs, strict=True))
        ]
        return {**self._of("chat.completion", choices), "usage": usage(answers)}

    def piece(
        self, index: int, delta: dict[str, str], finish: str | None = None, logprobs: Logprobs = None
    ) -> dict[str, Any]:
        """A part of a stream."""
        choices = [{"index": index, "delta": delta, "finish_reason": finish, "logprobs": _logprobs(logprobs)}]
        return {**self._of("chat.completion.chunk", choices), **({"usage": None} if self.with_usage else {})}

    def end(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The last part of a stream that tells what it took."""
        return {**self._of("chat.completion.chunk", []), "usage": usage(answers)}

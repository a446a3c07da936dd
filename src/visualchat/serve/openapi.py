"""The server's own description, `/openapi.json`: what each path takes, and every status that it may answer with.

Bodies are read by `visualchat.serve.protocol`, not by FastAPI, so their schemas are put in here, made from the same
classes. A program may check the server against it, as the tests do.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict

from visualchat.serve.protocol import ChatRequest, ImageRequest

REFERENCE = "#/components/schemas/{model}"


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Mistake(_Told):
    """What is wrong, as OpenAI's API tells it."""

    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(_Told):
    """The body of every response with a status of 400 or more."""

    error: Mistake


class TokenLogprob(_Told):
    """A token and how likely it was."""

    token: str
    bytes: list[int]
    logprob: float


class ScoredToken(TokenLogprob):
    """A token of an answer, and the likeliest in its place."""

    top_logprobs: list[TokenLogprob]


class Scores(_Told):
    """Of an answer's tokens."""

    content: list[ScoredToken]
    refusal: None


class Said(_Told):
    """An answer's text."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(_Told):
    """One of the answers."""

    index: int
    message: Said
    finish_reason: Literal["stop", "length"]
    logprobs: Scores | None


class PromptDetails(_Told):
    """Of the prompt's tokens, those that were known and those of images."""

    cached_tokens: int
    image_tokens: int


class Tokens(_Told):
    """What an answer took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Completion(_Told):
    """The answers to a request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Tokens


class KnownImage(_Told):
    """An image that the server has computed, or can show again."""

    object: Literal["image"]
    uuid: str
    number: int
    digest: str
    width: int
    height: int
    tokens: int
    known: bool
    why_not_stored: str | None


class Model(_Told):
    """What answers."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(_Told):
    """The one there is."""

    object: Literal["list"]
    data: list[Model]


class Health(_Told):
    """Whether it takes requests."""

    status: Literal["ok", "stopping"]


WORDS = {
    400: "The body is not what is expected, or beyond a limit.",
    401: "A key is missing or wrong.",
    404: "There is no such model or image.",
    408: "The body took too long.",
    413: "The body is too large.",
    415: "The body is not sent as JSON.",
    421: "The server is addressed by a name that is not this machine's, and asks for no key.",
    429: "As many requests as the server takes are in hand.",
    500: "The model failed.",
    503: "The server is stopping.",
    504: "The answer took too long.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a path may answer beside 200, as FastAPI has it."""
    return {status: {"model": Refusal, "description": WORDS[status]} for status in statuses}


OF_BODIES = refusals(*WORDS)
"""What a path that takes a body may answer beside 200."""

_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR4nGOMYmBiYAAAAdQAXtQYtZQAAAAASUVORK5CYII="
EXAMPLE = {"url": f"data:image/png;base64,{_PNG}"}
"""An image of 2 x 2 pixels."""


TEXT: dict[str, Any] = {"schema": {"type": "string"}}
"""Of a response that is no JSON."""

METRICS = {"content": {"text/plain": TEXT}}
"""A response in Prometheus' format."""


def taking(kind: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """That a path takes a body of a kind, such as an example, as FastAPI has it."""
    schema = {"$ref": REFERENCE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


def question(model: str) -> dict[str, Any]:
    """An example of a request to a model."""
    content = [{"type": "image_url", "image_url": EXAMPLE}, {"type": "text", "text": "What is in image 1?"}]
    return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 4}


def describe(app: FastAPI, keys: bool) -> dict[str, Any]:
    """All of an app, which asks for keys or not."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas: dict[str, Any] = found["components"]["schemas"]
    for kind in (ChatRequest, ImageRequest):
        schema = kind.model_json_schema(ref_template=REFERENCE)
        schemas.update(schema.pop("$defs", {}))
        schemas[kind.__name__] = schema
    if keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
        found["paths"]["/health"]["get"]["security"] = []
    return found

"""What a client is told of a mistake: a status code and a body of OpenAI's form, never words of a library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from fastapi.responses import JSONResponse

TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}
"""OpenAI's name for the kind of an error; all others are invalid requests."""

CODES = {401: "invalid_api_key", 404: "not_found", 413: "request_too_large", 429: "queue_full", 503: "stopping"}
"""What a program may ask for, where an error has no code of its own."""


HUNG_UP = 499
"""The status of a response that no one reads, as web servers count it."""


class ApiError(Exception):
    """A request that is not answered.

    Args:
        status: HTTP's status code.
        message: For the person who sent it.
        param: The part of the body that is wrong, if one is.
        code: For programs.
        headers: Further ones of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code or CODES.get(status)
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """It may come from another process."""
        again = partial(ApiError, param=self.param, code=self.code, headers=self.headers)
        return again, (self.status, self.message)

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole response."""
        return JSONResponse(self.body(), self.status, self.headers)


def queue_full() -> ApiError:
    """As many requests as the server takes are in hand."""
    return ApiError(429, "the server has as many requests as it takes; try again later", headers={"Retry-After": "1"})


def unknown_model(names: Iterable[str]) -> ApiError:
    """The server has models of these names alone."""
    message = f"there is no model of this name; this server has {', '.join(map(repr, names))}"
    return ApiError(404, message, param="model", code="model_not_found")


def stopping() -> ApiError:
    """The server ends the answers that run and takes no new ones."""
    return ApiError(503, "the server is stopping; try again later", headers={"Retry-After": "5"})


def hung_up() -> ApiError:
    """The client is gone."""
    return ApiError(HUNG_UP, "the client hung up")

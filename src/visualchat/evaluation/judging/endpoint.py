"""A judge behind any address that speaks OpenAI's chat API: a prompt in, words out, tried again where that may help."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
"""Answers of a server that is busy or was disturbed."""

LONGEST = 60.0
"""Seconds that are waited at most before the next attempt."""

_SHOWN = 200  # letters of a refusal that a message repeats


class Reply(NamedTuple):
    """What a judge said.

    Attributes:
        text: Its words.
        ended: Why they ended: `stop`, `length`, or whatever the server calls it.
        attempts: How often it was asked.
    """

    text: str
    ended: str
    attempts: int


class _Stay(HTTPRedirectHandler):
    """Goes nowhere else: the key is for this address alone."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


_OPENER = build_opener(_Stay)


@dataclass(frozen=True)
class Endpoint:
    """A judge.

    Attributes:
        address: What stands before `/chat/completions`.
        model: Its name there.
        key: Sent as a bearer token; None for a server that wants none.
        max_tokens: Of an answer.
        timeout: Seconds that one attempt may take.
        attempts: How often a prompt is tried.
        wait: Lets so many seconds pass.
    """

    address: str
    model: str
    key: str | None = field(default=None, repr=False)
    max_tokens: int = 2048
    timeout: float = 120.0
    attempts: int = 5
    wait: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if not self.address.startswith(("http://", "https://")):
            raise ValueError(f"address={self.address}: expected http:// or https://, up to and with /v1")

    def ask(self, prompt: str, images: Sequence[str] = ()) -> Reply:
        """The judge's answer, the likeliest words.

        Args:
            prompt: Its words.
            images: Behind them, as data URLs.

        Raises:
            ValueError: The server refuses the request, or is none of this kind.
            RuntimeError: It was busy or silent at every attempt.
        """
        shown = [{"type": "image_url", "image_url": {"url": url}} for url in images]
        content: Any = [{"type": "text", "text": prompt}, *shown] if shown else prompt
        body = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        request = Request(
            f"{self.address.rstrip('/')}/chat/completions",
            json.dumps({**body, "temperature": 0, "max_tokens": self.max_tokens}).encode(),
            {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})},
        )
        trouble = ""
        for attempt in range(1, self.attempts + 1):
            try:
                with _OPENER.open(request, timeout=self.timeout) as response:
                    return self._read(response.read(), attempt)
            except HTTPError as error:
                trouble = f"HTTP {error.code}"
                if error.code not in TRY_AGAIN:
                    raise ValueError(self._refused(error)) from None
                pause = _pause(error.headers.get("Retry-After", ""), attempt)
            except (OSError, HTTPException) as error:
                trouble = str(getattr(error, "reason", error) or type(error).__name__)
                pause = _pause("", attempt)
            if attempt < self.attempts:
                self.wait(pause)
        raise RuntimeError(
            f"the judge at {self.address} gave no answer in {self.attempts} attempts, at last: {trouble}\n"
            "what it has judged so far is kept: type the same line with this folder to continue"
        )

    def _read(self, body: bytes, attempt: int) -> Reply:
        try:
            (choice, *_) = json.loads(body)["choices"]
            text, ended = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found = body[:_SHOWN].decode(errors="replace")
            raise ValueError(f"{self.address} does not speak OpenAI's chat API: it answered {found!r}") from error
        return Reply(text if isinstance(text, str) else "", str(ended), attempt)

    def _refused(self, error: HTTPError) -> str:
        said = " ".join(error.read(_SHOWN).decode(errors="replace").split())
        remedy = "; its key is read from OPENAI_API_KEY" if error.code in (401, 403) else ""
        return f"the judge at {self.address} refused with HTTP {error.code}: {said}{remedy}"


def _pause(asked: str, attempt: int) -> float:
    """Seconds before the next attempt: as the server asks, or twice as long each time."""
    return min(float(asked) if asked.isdecimal() else 2.0 ** (attempt - 1), LONGEST)

"""What the page needs of the server: its files, what it may offer, and where an answer looked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from visualchat.chat.looking import Looked, layers_and_heads, look, why_not_shown
from visualchat.dialogue.messages import dialogue_from_messages
from visualchat.engine import Engine
from visualchat.serve.body import read_body
from visualchat.serve.conversation import with_images
from visualchat.serve.errors import ApiError, unknown_model
from visualchat.serve.gate import Gate
from visualchat.serve.protocol import ImagePart, Message, read_request
from visualchat.serve.settings import Settings
from visualchat.web.examples import examples

FILES = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "api.js": "text/javascript",
    "dialogue.js": "text/javascript",
    "rounds.js": "text/javascript",
    "looking.js": "text/javascript",
}
"""All that is served beside the page itself; no other file can be read."""

HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""The page loads nothing from elsewhere, and whatever a model says runs nowhere."""

DIGITS = 6
"""Weights are sent with so many digits behind the point."""


@dataclass(frozen=True)
class ShownModel:
    """A model that answers on the page.

    Attributes:
        name: What requests call it.
        engine: Answers.
    """

    name: str
    engine: Engine


class AttentionRequest(BaseModel):
    """The body of a request to tell where an answer looked.

    Attributes:
        model: The one that gave it.
        messages: The conversation; the last is the answer.
        layer: Which one, from 0; null for the mean of all.
        head: Likewise.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    messages: list[Message] = Field(min_length=2)
    layer: int | None = None
    head: int | None = None


def add_page(gate: Gate, models: Sequence[ShownModel], settings: Settings) -> None:
    """Let a server that does not run yet show the page, at its root."""
    rooms = PageRooms(gate, models, settings)
    gate.open += ("/", "/page")
    own = {"include_in_schema": False, "response_model": None}
    gate.app.add_api_route("/", rooms.index, **own)  # type: ignore[arg-type]
    gate.app.add_api_route("/page/examples.json", rooms.examples, **own)  # type: ignore[arg-type]
    gate.app.add_api_route("/page/{name}", rooms.file, **own)  # type: ignore[arg-type]
    gate.app.add_api_route("/v1/page", rooms.about, **own)  # type: ignore[arg-type]
    gate.app.add_api_route("/v1/attention", rooms.attention, methods=["POST"], **own)  # type: ignore[arg-type]


class PageRooms:
    """What is done behind each of the page's paths.

    Args:
        gate: Has a place for each request that computes.
        models: Those that answer, the first of them where the page shows one.
        settings: What clients may ask for.
    """

    def __init__(self, gate: Gate, models: Sequence[ShownModel], settings: Settings) -> None:
        self.gate, self.settings = gate, settings
        self.models = {model.name: model for model in models}
        self._looking = ThreadPoolExecutor(1, "visualchat-look")  # one at a time beside the engine

    async def index(self) -> Response:
        """The page; it asks for a key itself where the server has some."""
        return Response(_file("index.html"), media_type="text/html", headers=HEADERS)

    async def file(self, name: str) -> Response:
        """One of its files."""
        if name not in FILES:
            raise ApiError(404, f"the page has no such file; it has {', '.join(FILES)}")
        return Response(_file(name), media_type=FILES[name], headers=HEADERS)

    async def examples(self) -> Response:
        """Dialogues to begin with."""
        return Response(await asyncio.to_thread(_examples), media_type="application/json", headers=HEADERS)

    async def about(self) -> dict[str, Any]:
        """Which models there are, and what they may be asked."""
        limits = self.settings.limits
        return {
            "models": [_described(shown) for shown in self.models.values()],
            "limits": {"images": limits.images, "tokens": limits.tokens, "body_bytes": limits.body_bytes},
            "max_new_tokens": self.settings.max_new_tokens,
            "temperature": self.settings.temperature,
        }

    async def attention(self, request: Request) -> Response:
        """Where an answer looked."""
        with self.gate.visit(""):
            try:
                body = await read_body(request, self.settings.limits)
            except ClientDisconnect:
                return Response(status_code=499)
            loop = asyncio.get_running_loop()
            return JSONResponse(await loop.run_in_executor(self._looking, self._look, body))

    def _look(self, body: bytes) -> dict[str, Any]:
        """Runs in a thread: what the page draws.

        Raises:
            ApiError: The request is wrong, or the model cannot tell.
        """
        asked = read_request(AttentionRequest, body)
        if asked.model not in self.models:
            raise unknown_model(self.models)
        parts = [part for message in asked.messages for part in message.content]
        if any(isinstance(part, ImagePart) and part.image_url is None for part in parts):
            raise ApiError(400, "images must come as data URLs here, found a uuid alone", param="messages")
        engine = self.models[asked.model].engine
        messages = with_images(asked.messages, self.settings.limits)
        try:
            dialogue = dialogue_from_messages(messages)
            return _drawn(look(engine.model, engine.processor, dialogue, layer=asked.layer, head=asked.head))
        except ValueError as error:  # our own words
            raise ApiError(400, str(error), param="messages") from None


def _described(shown: ShownModel) -> dict[str, Any]:
    model = shown.engine.model
    layers, heads = layers_and_heads(model)
    return {
        "name": shown.name,
        "attention": model.config.attention_kind,
        "layers": layers,
        "heads": heads,
        "why_not_shown": why_not_shown(model),
    }


def _drawn(looked: Looked) -> dict[str, Any]:
    """What was looked at as the page takes it; weights are lists by the answer's tokens."""
    images = [
        {
            "rows": grid.rows,
            "columns": grid.columns,
            "first": grid.first,
            "box": grid.box,
            "weights": looked.images[:, index].round(decimals=DIGITS).tolist(),
        }
        for index, grid in enumerate(looked.grids)
    ]
    text = {"words": looked.words, "weights": looked.text.round(decimals=DIGITS).tolist()}
    return {"tokens": looked.tokens, "softmaxes": looked.softmaxes, "images": images, "text": text}


@cache
def _file(name: str) -> bytes:
    return files("visualchat.web").joinpath("files", name).read_bytes()


@cache
def _examples() -> bytes:
    return json.dumps(examples()).encode()

"""The app: what is done behind each path, and the paths."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from visualchat.engine import Answer
from visualchat.serve.backend import Backend, Event, Reply
from visualchat.serve.body import read_body
from visualchat.serve.errors import ApiError, hung_up, stopping, unknown_model
from visualchat.serve.gate import COMPLETIONS, IMAGES, Gate, Visit, visit_of
from visualchat.serve.metrics import TYPE, Metrics
from visualchat.serve.named_images import NamedImages
from visualchat.serve.openapi import (
    EXAMPLE,
    METRICS,
    OF_BODIES,
    TEXT,
    Completion,
    Health,
    KnownImage,
    Model,
    Models,
    describe,
    question,
    refusals,
    taking,
)
from visualchat.serve.protocol import Asked, ChatRequest, Envelope, ImageRequest, read_request
from visualchat.serve.settings import Settings

log = logging.getLogger(__name__)

UNKEPT = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Headers of a stream: no one on its way keeps it, not even until a few kilobytes have come, as nginx would."""


def build_app(backend: Backend, settings: Settings) -> Gate:
    """The whole server but its sockets: ASGI.

    Args:
        backend: Answers; it runs while the app does.
        settings: What clients may ask for.
    """
    metrics = Metrics()
    rooms = Rooms(backend, settings, metrics)
    app = FastAPI(
        title="visualchat-serve",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=rooms.lifespan,
        redirect_slashes=False,
    )
    gate = Gate(app, settings.keys, settings.reuse_across_keys, backend.places, metrics)
    metrics.watch(lambda: len(gate.visits))

    async def health() -> JSONResponse:
        return JSONResponse({"status": "stopping" if gate.stopping else "ok"}, 503 if gate.stopping else 200)

    async def description() -> JSONResponse:
        return JSONResponse(describe(app, keys=bool(settings.keys)))

    told: dict[str, Any] = {"response_model": None}
    answers = {"model": Completion, "content": {"text/event-stream": TEXT}}
    app.add_api_route(
        COMPLETIONS,
        rooms.complete,
        methods=["POST"],
        responses={200: answers, **OF_BODIES},
        openapi_extra=taking(ChatRequest, question(settings.name)),
        **told,
    )
    app.add_api_route(
        IMAGES,
        rooms.warm,
        methods=["POST"],
        responses={200: {"model": KnownImage}, **OF_BODIES},
        openapi_extra=taking(ImageRequest, {"image_url": EXAMPLE}),
        **told,
    )
    app.add_api_route("/v1/models", rooms.models, responses={200: {"model": Models}, **refusals(401, 421)}, **told)
    found = {200: {"model": Model}, **refusals(401, 404, 421)}
    app.add_api_route("/v1/models/{name:path}", rooms.model, responses=found, **told)
    app.add_api_route("/metrics", rooms.metrics_text, responses={200: METRICS, **refusals(401, 421)}, **told)
    alive = {200: {"model": Health}, 503: {"model": Health}, **refusals(421)}
    app.add_api_route("/health", health, responses=alive, **told)
    app.add_api_route("/health", health, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/openapi.json", description, include_in_schema=False)
    app.add_exception_handler(ApiError, _mistake)
    app.add_exception_handler(HTTPException, _unknown_path)
    app.add_exception_handler(Exception, _fault)
    return gate


async def _mistake(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _unknown_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = f"POST {COMPLETIONS}, POST {IMAGES}, GET /v1/models, /health, /metrics, /openapi.json"
    message = f"there is nothing for {request.method} at this path; this server has {known}"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _fault(request: Request, error: Exception) -> Response:
    return _failed(error).response()  # starlette logs the trace


def _failed(error: Exception) -> ApiError:
    """What a client is told of an error that is not its own."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TimeoutError):
        return ApiError(504, "the answer took longer than this server allows", code="timeout")
    return ApiError(500, "the server failed to answer; its log says why", code="internal_error")


class Rooms:
    """What is done behind each path.

    Args:
        backend: Answers.
        settings: What clients may ask for.
        metrics: Count.
    """

    def __init__(self, backend: Backend, settings: Settings, metrics: Metrics) -> None:
        self.backend, self.settings, self.metrics = backend, settings, metrics
        self.named = NamedImages(settings.named_image_bytes)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """The backend runs while the app does."""
        async with self.backend:
            yield

    async def models(self) -> dict[str, Any]:
        """All there are, as a rule one."""
        return {"object": "list", "data": [_told_of(name) for name in self.backend.names]}

    async def model(self, name: str) -> dict[str, Any]:
        """One of them."""
        if name not in self.backend.names:
            raise unknown_model(self.backend.names)
        return _told_of(name)

    async def metrics_text(self) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(await self.backend.figures()), media_type=TYPE)

    async def complete(self, request: Request) -> Response:
        """Answer a conversation."""
        visit = visit_of(request.scope)
        asked = await self._read(ChatRequest, request, visit)
        self.named.fill(asked, visit.scope)
        reply = await visit.unless_cut(self.backend.submit(asked, visit.scope))
        visit.add(reply)
        self.named.remember_all(asked, visit.scope)
        envelope = Envelope(asked.model, asked.stream_options.include_usage)
        if asked.stream:
            events = self._stream(reply, asked.n, envelope)
            return StreamingResponse(events, media_type="text/event-stream", headers=UNKEPT)
        found: dict[int, Answer] = {}
        scores: list[list[dict[str, Any]]] = [[] for _ in range(asked.n)]
        try:
            async for index, event in self._events(reply):
                if isinstance(event, Answer):
                    found[index] = self._whole(event)
                else:
                    scores[index] += event.logprobs or ()
        except Exception as error:
            raise self._told(visit.cut or error) from None
        answers = [found[index] for index in sorted(found)]
        return JSONResponse(envelope.whole(answers, scores if asked.logprobs else [None] * asked.n))

    async def warm(self, request: Request) -> Response:
        """Know an image before anyone asks about it."""
        visit = visit_of(request.scope)
        asked = await self._read(ImageRequest, request, visit)
        most = self.settings.limits.images
        if asked.number > most:
            raise ApiError(400, f"number is {asked.number}: a conversation has at most {most} images", param="number")
        if asked.image_url is not None:
            url = asked.image_url.url
        else:
            assert asked.uuid is not None
            url = self.named.find(visit.scope, asked.uuid, "uuid")
        try:
            async with asyncio.timeout(self.settings.limits.seconds):
                warmed = await visit.unless_cut(self.backend.warm(url, asked.number, visit.scope))
        except Exception as error:
            raise self._told(error) from None
        uuid = asked.uuid or warmed.digest
        self.named.remember(visit.scope, uuid, url)
        return JSONResponse({"object": "image", "uuid": uuid, "number": asked.number, **asdict(warmed)})

    async def _read(self, kind: type[Asked], request: Request, visit: Visit) -> Asked:
        """What a request asks."""
        try:
            body = await visit.unless_cut(read_body(request, self.settings.limits))
        except ClientDisconnect:
            raise hung_up() from None
        visit.watch(request.receive)
        return await visit.unless_cut(asyncio.to_thread(read_request, kind, body))

    async def _events(self, reply: Reply) -> AsyncIterator[Event]:
        """What comes of a reply, as long as it may take.

        Raises:
            TimeoutError: It takes longer.
        """
        deadline = asyncio.get_running_loop().time() + self.settings.limits.seconds
        events = reply.events()
        while True:
            async with asyncio.timeout_at(deadline):
                event = await anext(events, None)
            if event is None:
                return
            yield event

    def _whole(self, answer: Answer) -> Answer:
        """An answer that was not cut off."""
        if answer.finish == "cancelled":
            raise stopping()
        self.metrics.note(answer)
        return answer

    def _told(self, error: Exception) -> ApiError:
        failed = _failed(error)
        if failed.status == 500:
            log.error("an answer failed", exc_info=error)
        return failed

    async def _stream(self, reply: Reply, answers: int, envelope: Envelope) -> AsyncIterator[str]:
        """The answers as server-sent events."""
        found: dict[int, Answer] = {}
        for index in range(answers):
            yield _event(envelope.piece(index, {"role": "assistant", "content": ""}))
        try:
            async for index, event in self._events(reply):
                if isinstance(event, Answer):
                    found[index] = self._whole(event)
                    yield _event(envelope.piece(index, {}, event.finish))
                else:
                    yield _event(envelope.piece(index, {"content": event.text}, logprobs=event.logprobs))
        except Exception as error:
            yield _event(self._told(error).body())  # the status was sent: this is how clients of OpenAI learn of it
            return
        if envelope.with_usage:
            yield _event(envelope.end([found[index] for index in sorted(found)]))
        yield "data: [DONE]\n\n"


def _told_of(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "visualchat"}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"

"""The app: `/v1/chat/completions`, plain and streamed, `/v1/models`, `/health` and `/metrics`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from visualchat.engine import Answer, Engine, QueueFull
from visualchat.serve.answers import Answers
from visualchat.serve.conversation import engine_requests
from visualchat.serve.errors import ApiError, queue_full, stopping
from visualchat.serve.gate import COMPLETIONS, Gate, Visit, visit_of
from visualchat.serve.metrics import TYPE, Metrics
from visualchat.serve.protocol import MOST_CHOICES, ChatRequest, Envelope, read_request
from visualchat.serve.settings import Settings

log = logging.getLogger(__name__)

UNKEPT = {"Cache-Control": "no-cache"}
"""Headers of a stream."""

HUNG_UP = 499
"""The status of a response that no one reads, as web servers count it."""


def build_app(engine: Engine, settings: Settings) -> Gate:
    """The whole server but its sockets: ASGI.

    Args:
        engine: Runs in its own thread, or will.
        settings: What clients may ask for.
    """
    metrics = Metrics()
    places = engine.max_running + engine.max_waiting
    rooms = Rooms(engine, settings, metrics, places)
    app = FastAPI(title="visualchat-serve", docs_url=None, redoc_url=None, openapi_url=None, lifespan=rooms.lifespan)
    app.add_api_route(COMPLETIONS, rooms.complete, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", rooms.models, methods=["GET"])
    app.add_api_route("/metrics", rooms.metrics_text, methods=["GET"], response_model=None)
    app.add_exception_handler(ApiError, _mistake)
    app.add_exception_handler(HTTPException, _unknown_path)
    app.add_exception_handler(Exception, _fault)
    gate = Gate(app, settings.keys, settings.reuse_across_keys, places, metrics)
    metrics.watch(engine.store, lambda: len(gate.visits))

    async def health() -> JSONResponse:
        return JSONResponse({"status": "stopping" if gate.stopping else "ok"}, 503 if gate.stopping else 200)

    app.add_api_route("/health", health, methods=["GET"], response_model=None)
    return gate


async def _mistake(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _unknown_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = f"POST {COMPLETIONS}, GET /v1/models, GET /health, GET /metrics"
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
        engine: Answers.
        settings: What clients may ask for.
        metrics: Count.
        places: The most requests at a time.
    """

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics, places: int) -> None:
        self.engine, self.settings, self.metrics = engine, settings, metrics
        self._decoders = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "visualchat-decode")
        self._readers = ThreadPoolExecutor(places * MOST_CHOICES, "visualchat-read")  # started as they are needed

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """The engine's thread runs while the app does."""
        with self.engine:
            yield
        self._decoders.shutdown()
        self._readers.shutdown()

    async def models(self) -> dict[str, Any]:
        """The one there is."""
        model = {"id": self.settings.name, "object": "model", "created": 0, "owned_by": "visualchat"}
        return {"object": "list", "data": [model]}

    async def metrics_text(self) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), media_type=TYPE)

    async def complete(self, request: Request) -> Response:
        """Answer a conversation."""
        visit = visit_of(request.scope)
        try:
            body = await self._body(request)
        except ClientDisconnect:
            return Response(status_code=HUNG_UP)
        visit.watch(request.receive)
        loop = asyncio.get_running_loop()
        asked = await loop.run_in_executor(self._decoders, self._submit, body, visit)
        answers = Answers(visit.handles, self._readers, self.settings.limits.seconds)
        envelope = Envelope(asked.model, asked.stream_options.include_usage)
        if asked.stream:
            return StreamingResponse(
                self._stream(answers, envelope, visit), media_type="text/event-stream", headers=UNKEPT
            )
        found: dict[int, Answer] = {}
        try:
            async for index, event in answers.events():
                if isinstance(event, Answer):
                    found[index] = self._whole(event)
        except Exception as error:
            if visit.gone:
                return Response(status_code=HUNG_UP)
            raise self._told(error) from None
        return JSONResponse(envelope.whole([found[index] for index in sorted(found)]))

    async def _body(self, request: Request) -> bytes:
        """The request's body, as far as it may be read."""
        limits = self.settings.limits
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"the body is {kind or 'of no type'}: expected Content-Type: application/json")
        large = ApiError(413, f"the body has more than {limits.body_bytes} bytes; send smaller images, or fewer")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limits.body_bytes:
            raise large
        body = bytearray()
        try:
            async with asyncio.timeout(limits.upload_seconds):
                async for piece in request.stream():
                    body += piece
                    if len(body) > limits.body_bytes:
                        raise large
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {limits.upload_seconds:g} seconds") from None
        return bytes(body)

    def _submit(self, body: bytes, visit: Visit) -> ChatRequest:
        """Runs in a thread: read a request and hand it to the engine."""
        asked = read_request(body)
        if visit.gone:
            raise ApiError(HUNG_UP, "the client hung up")
        for request in engine_requests(asked, self.engine.processor, self.settings, visit.scope):
            try:
                visit.handles.append(self.engine.submit(request))
            except QueueFull:
                raise queue_full() from None  # with the visit end the handles before it
            except ValueError as error:  # our own words: too long for the model
                raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from None
            except RuntimeError:
                raise stopping() from None
        if visit.gone:
            visit.cancel()
        return asked

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

    async def _stream(self, answers: Answers, envelope: Envelope, visit: Visit) -> AsyncIterator[str]:
        """The answers as server-sent events."""
        found: dict[int, Answer] = {}
        for index in range(len(visit.handles)):
            yield _event(envelope.piece(index, {"role": "assistant", "content": ""}))
        try:
            async for index, event in answers.events():
                if isinstance(event, Answer):
                    found[index] = self._whole(event)
                    yield _event(envelope.piece(index, {}, event.finish))
                else:
                    yield _event(envelope.piece(index, {"content": event}))
        except Exception as error:
            yield _event(self._told(error).body())  # the status was sent: this is how clients of OpenAI learn of it
            return
        if envelope.with_usage:
            yield _event(envelope.end([found[index] for index in sorted(found)]))
        yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"

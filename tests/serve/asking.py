"""Requests to a server in this process, and what the model alone says to them."""

import asyncio
import base64
import io
import json

import numpy as np
from PIL import Image

from visualchat.dialogue.messages import dialogue_from_messages
from visualchat.engine import Engine, Request

PATH = "/v1/chat/completions"
MOST = 6  # tokens of an answer


def picture(seed, size=(16, 16)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def as_url(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return encoded(file.getvalue(), kind.lower())


def encoded(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def part(url, **more):
    return {"type": "image_url", "image_url": {"url": url}, **more}


def user(text, *seeds):
    return {"role": "user", "content": [*(part(as_url(picture(n))) for n in seeds), {"type": "text", "text": text}]}


def said(text):
    return {"role": "assistant", "content": text}


def body(*messages, **settings):
    return {"model": "visualchat", "messages": list(messages), "max_tokens": MOST, **settings}


def formed(schema, name="answer"):
    """What a request asks of its answer's form."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


def alone(model, processor, *messages, **settings):
    """What an engine that knows nothing yet answers to the same."""
    dialogue = dialogue_from_messages(messages)
    request = Request.of(processor, dialogue, **{"max_new_tokens": MOST, **settings})
    return Engine(model, processor).submit(request).result().text


def events(text):
    """What a stream of events holds; it must end as OpenAI's do."""
    found = [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]
    assert found[-1] == "[DONE]"
    return [json.loads(event) for event in found[:-1]]


async def visit(app, sent, leave=None, headers=(), path=PATH):
    """One request as a server hands it to the app; returns the status and what came.

    Args:
        app: The server.
        sent: Its body, as JSON or bytes; None for one that never comes.
        leave: Once this coroutine function returns, the client hangs up.
        headers: Further ones.
        path: Where.
    """
    data = sent if isinstance(sent, bytes | None) else json.dumps(sent).encode()
    messages = [] if data is None else [{"type": "http.request", "body": data, "more_body": False}]
    status, came, gone = None, b"", asyncio.Event()

    async def receive():
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        nonlocal status, came
        status = message.get("status", status)
        came += message.get("body", b"")

    async def hang_up():
        await leave()
        gone.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "scheme": "http",
        "root_path": "",
    }
    leaving = asyncio.create_task(hang_up()) if leave else None
    await app(scope, receive, send)
    if leaving:
        leaving.cancel()
    return status, came

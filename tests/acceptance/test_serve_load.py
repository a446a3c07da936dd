"""The server as a process under what people do to it: a thousand requests and more, hang-ups, bodies of any shape."""

import asyncio
import base64
import io
import itertools
import json
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from commands import LIMIT, run, serving
from PIL import Image

from visualchat.dialogue import Dialogue, Turn
from visualchat.engine import Engine, Request

pytestmark = pytest.mark.slow

KEY = "a-key-of-ours"
MOST = 4  # tokens of an answer
SIZE = 512  # pixels of a side: a decoded image that stays somewhere is 768 kB
REQUESTS, CLIENTS, PLACES = 1500, 64, 128
WARM, GROWTH = 900, 200 << 20
"""After this many requests the allocator has what it needs, and the process may grow by this many bytes until the last
one; a decoded image of each request in between is 460 MB."""


@pytest.fixture(scope="module")
def small(tmp_path_factory, make_model, processor):
    """The smallest model that is saved, and what it alone says to some images."""
    folder = tmp_path_factory.mktemp("small")
    model = make_model(projector_type="linear_norm").eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    engine = Engine(model, processor)
    asked = [Dialogue((Turn.ask("What is it?", [drawn(seed)]),)) for seed in range(6)]
    said = [engine.submit(Request.of(processor, dialogue, max_new_tokens=MOST)).result().text for dialogue in asked]
    return folder, said


def drawn(seed):
    """Few colours in large fields, so that it is small when it is sent."""
    fields = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(fields.repeat(SIZE // 4, 0).repeat(SIZE // 4, 1))


def body(seed, **more):
    file = io.BytesIO()
    drawn(seed).save(file, "PNG")
    url = {"url": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"}
    content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "What is it?"}]
    sent = {"model": "visualchat", "messages": [{"role": "user", "content": content}], "max_tokens": MOST, **more}
    return json.dumps(sent).encode()


async def post(url, data, leave=None):
    """One request on a connection of its own: its status and body; None if it is left.

    Args:
        url: The server's.
        data: The body.
        leave: When to hang up: "half" of the body sent, "sent" all of it, at the "first" bytes of the response.
    """
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
    whole = f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data
    try:
        writer.write(whole[: len(whole) // 2] if leave == "half" else whole)
        await writer.drain()
        if leave == "first":
            await reader.read(1)
        if leave is not None:
            return None
        found = await reader.read()
    finally:
        writer.close()
    headers, _, rest = found.partition(b"\r\n\r\n")
    return int(headers.split()[1]), rest


def memory(process):
    """Bytes of a process that are in memory."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) << 10


def told(url):
    """The server's metrics."""
    lines = httpx.get(url.replace("/v1", "/metrics"), timeout=LIMIT).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_many_requests_of_which_a_third_are_left_leave_nothing_behind(small, tmp_path):
    """No answer lost or of another image, no place kept, the store within its budget, no memory."""
    folder, expected = small
    bodies = [body(seed) for seed in range(6)]
    leaving = itertools.cycle(["half", "sent", "first"])
    limits = (
        "engine.max_running=8",
        f"engine.max_waiting={PLACES - 8}",
        "store.device_bytes=4096",
        "store.host_bytes=9000",
    )
    kept = "engine.kept_bytes=100000"
    with serving(tmp_path, f"folder={folder}", *limits, kept) as (process, url):

        async def client(numbers):
            for number in numbers:
                if number == WARM:
                    sizes.append(memory(process))
                if number % 3 == 0:  # an image that no one else has
                    await post(url, body(1000 + number, stream=True), next(leaving))
                    continue
                status, came = await post(url, bodies[number % 6])
                assert status == 200, came
                assert json.loads(came)["choices"][0]["message"]["content"] == expected[number % 6]
                answered.append(number)

        async def scenario():
            numbers = iter(range(REQUESTS))
            await asyncio.gather(*(client(numbers) for _ in range(CLIENTS)))
            while told(url)["visualchat_requests_in_hand"]:
                await asyncio.sleep(0.05)
            return await asyncio.gather(*(post(url, bodies[n % 6]) for n in range(PLACES)))  # all places at once

        sizes, answered = [], []
        assert [status for status, _ in asyncio.run(scenario())] == [200] * PLACES
        assert len(answered) == REQUESTS - len(range(0, REQUESTS, 3))
        figures = told(url)
        assert figures["visualchat_image_store_device_bytes"] <= 4096
        assert figures["visualchat_image_store_host_bytes"] <= 9000
        assert memory(process) - sizes[0] < GROWTH, [size >> 20 for size in (*sizes, memory(process))]
        assert process.poll() is None


def test_requests_of_any_shape_get_a_documented_answer(small, tmp_path):
    """Made from the server's own description, valid and invalid: no 5xx, no status or body that it does not name."""
    folder, _ = small
    few = "max_new_tokens=4", "limits.tokens=8", "limits.upload_seconds=5"
    with serving(tmp_path, f"folder={folder}", *few, VISUALCHAT_API_KEYS=KEY) as (process, url):
        words = ["run", url.replace("/v1", "/openapi.json"), "-H", f"Authorization: Bearer {KEY}", "--seed", "1"]
        # a schema cannot say what makes a conversation or an image: what fits it may be refused, with a 4xx
        how = ["-n", "40", "--exclude-checks", "positive_data_acceptance", "--no-shrink", "--no-color"]
        done = run(tmp_path, sys.executable, "-m", "schemathesis.cli", *words, *how).ok()
        assert "6 selected / 6 total" in done.out, str(done)
        assert "6 passed" in done.out, str(done)
        assert "2 passed" in done.out.partition("Coverage")[0], str(done)  # the examples are answered
        process.terminate()
        _, err = process.communicate(timeout=LIMIT)
    assert "Traceback" not in err
    assert "an answer failed" not in err

"""`visualchat-serve` as its users meet it: the command in a process of its own, the official client unchanged."""

import base64
import http.client
import io
import json
import re
import signal
import socket
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from commands import LIMIT, run, serving
from openai import OpenAI

from visualchat.chat import ChatSession
from visualchat.model import VisualChatProcessor
from visualchat.model.saved import load_model, saved_model
from visualchat.tiny.scenes import draw, random_scene

pytestmark = pytest.mark.slow

ROUNDS = (("What shape is in image 1?", [1]), ("Are you sure?", []), ("Which image has a circle?", [2, 3]))
KEY = "a-key-of-ours"


def content(question, seeds):
    """A question with images before it."""
    parts = []
    for seed in seeds:
        file = io.BytesIO()
        draw(random_scene(seed)).save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url, "detail": "high"}})
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def sessions(folder):
    """What `ChatSession` answers to the rounds."""
    found = saved_model(str(folder))
    session = ChatSession(load_model(found), VisualChatProcessor.from_pretrained(found), max_new_tokens=8)
    return ["".join(session.ask(text, [draw(random_scene(seed)) for seed in seeds])) for text, seeds in ROUNDS]


def test_the_official_client_chats_over_rounds_with_images(trained):
    """Plain and streamed, with the history that clients send: the answers are a session's, images known count as so."""
    (folder,) = trained.glob("outputs/*/*/model")
    expected = sessions(folder)
    with serving(trained, f"folder={folder.relative_to(trained)}", VISUALCHAT_API_KEYS=f"other-key,{KEY}") as (_, url):
        client = OpenAI(base_url=url, api_key=KEY)
        plain, streamed = [], []
        for text, seeds in ROUNDS:
            plain.append(content(text, seeds))
            answer = client.chat.completions.create(model="visualchat", messages=plain, max_tokens=8)
            plain.append(answer.choices[0].message)  # as it came
        assert [message.content for message in plain[1::2]] == expected
        assert answer.usage.prompt_tokens_details.image_tokens == 3 * 16
        assert answer.usage.prompt_tokens_details.cached_tokens > 16  # the rounds before it
        for text, seeds in ROUNDS:
            streamed.append(content(text, seeds))
            chunks = client.chat.completions.create(
                model="visualchat",
                messages=streamed,
                max_completion_tokens=8,
                stream=True,
                stream_options={"include_usage": True},
            )
            *pieces, usage = chunks
            said = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
            streamed.append({"role": "assistant", "content": said})
        assert [message["content"] for message in streamed[1::2]] == expected
        assert usage.usage.prompt_tokens_details.cached_tokens == usage.usage.prompt_tokens - 1
        with pytest.raises(openai.BadRequestError, match="tools is not supported"):
            client.chat.completions.create(model="visualchat", messages=plain, tools=[{"type": "function"}])
        with pytest.raises(openai.AuthenticationError):
            OpenAI(base_url=url, api_key="wrong").models.list()


def test_a_server_under_load_loses_nothing_when_clients_hang_up(trained):
    with serving(trained, "engine.max_waiting=100") as (_, url):
        asked = {"model": "visualchat", "messages": [content("What is it?", [1])], "max_tokens": 60}
        with httpx.Client(base_url=url, timeout=LIMIT) as client:
            expected = client.post("chat/completions", json=asked).json()["choices"]
            found = []

            def one(number):
                if number % 3:
                    found.append(client.post("chat/completions", json=asked).json()["choices"])
                    return
                with httpx.stream("POST", f"{url}/chat/completions", json={**asked, "stream": True}) as response:
                    next(response.iter_bytes())  # and away

            clients = [threading.Thread(target=one, args=(number,)) for number in range(64)]
            for thread in clients:
                thread.start()
            for thread in clients:
                thread.join()
            assert found == [expected] * 42
            until(url, "/metrics", lambda said: "in_hand 0.0" in said.text)


@contextmanager
def half_sent(url, asked):
    """A request for an answer of which the server has the head and half of the body; gives what sends the rest."""
    body = json.dumps(asked).encode()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=LIMIT)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:50])
    until(url, "/metrics", lambda said: "in_hand 1.0" in said.text)

    def rest():
        connection.send(body[50:])
        return connection.getresponse()

    yield rest
    connection.close()


def until(url, path, holds):
    """Ask for something again and again."""
    while not holds(httpx.get(url.replace("/v1", path), timeout=LIMIT)):
        time.sleep(0.05)


def raw(asked, *headers, version="1.1"):
    """A request for an answer, to the last byte."""
    data = json.dumps(asked).encode()
    lines = [f"POST /v1/chat/completions HTTP/{version}", "Content-Type: application/json", *headers]
    if not any(line.startswith("Transfer-Encoding") for line in lines):
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join([*lines, "", ""]).encode() + data


def exchanged(url, *pieces):
    """The statuses of all that comes back for some bytes, and the text, once the server has closed the connection."""
    at, found = urlsplit(url), b""
    with socket.create_connection((at.hostname, at.port), LIMIT) as connection:
        for piece in pieces:
            connection.sendall(piece)
        while came := connection.recv(1 << 16):
            found += came
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", found)], found.decode()


def test_http_as_other_clients_speak_it(trained):
    """Old and new HTTP, in pieces and at once; what is no request, or one to change the protocol, is no answer."""
    asked = {"model": "visualchat", "messages": [content("What is it?", [1])], "max_tokens": 4}
    own, last = "Host: localhost", "Connection: close"
    java = "Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQB"
    head, _, data = raw(asked, own, last, "Transfer-Encoding: chunked").partition(b"\r\n\r\n")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (data[:700], data[700:], b""))
    whole = raw(asked, own, last)
    answered = {
        "HTTP/1.0 without a name": ([raw(asked, version="1.0")], [200]),
        "an offer of HTTP/2": ([raw(asked, own, *java)], [200]),
        "chunks": ([head + b"\r\n\r\n" + chunks], [200]),
        "pieces": ([whole[start : start + 400] for start in range(0, len(whole), 400)], [200]),
        "asking first": ([raw(asked, own, last, "Expect: 100-continue")], [100, 200]),
        "one behind another": ([raw(asked, own) + whole], [200, 200]),
    }
    socketed = f"GET /v1/models HTTP/1.1\r\n{own}\r\n{java[0]}\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    refused = {
        "a web page's form": ([whole.replace(b"application/json", b"text/plain")], [415]),
        "a web page's request to ask": ([f"OPTIONS /v1/models HTTP/1.1\r\n{own}\r\n{last}\r\n\r\n".encode()], [405]),
        "two names": ([raw(asked, own, "Host: other.example", last)], [400]),
        "another name": ([raw(asked, "Host: other.example", last)], [421]),
        "a web socket by another name": ([f"{socketed}\r\n".replace("localhost", "other.example").encode()], [421]),
        "TLS": ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(99)], [400]),
    }
    with serving(trained) as (process, url):
        said = httpx.post(f"{url}/chat/completions", json=asked, timeout=LIMIT).json()["choices"][0]["message"]
        for name, (pieces, statuses) in (answered | refused).items():
            found, text = exchanged(url, *pieces)
            assert found == statuses, (name, text)
            assert text.count(json.dumps(said["content"])) == statuses.count(200), (name, text)
            assert "access-control" not in text.lower(), (name, text)
        process.terminate()
        assert process.communicate(timeout=LIMIT) == ("", "")


def test_sigterm_lets_running_answers_end_and_refuses_new_ones(trained):
    asked = {"model": "visualchat", "messages": [content("What is it?", [1])], "max_tokens": 8}
    with serving(trained) as (process, url):
        expected = httpx.post(f"{url}/chat/completions", json=asked, timeout=LIMIT).json()["choices"]
        with half_sent(url, asked) as rest:
            process.send_signal(signal.SIGTERM)
            until(url, "/health", lambda said: said.status_code == 503)
            refused = httpx.post(f"{url}/chat/completions", json=asked, timeout=LIMIT)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "stopping"
            assert refused.headers["retry-after"]
            answered = rest()
            assert answered.status == 200
            assert json.loads(answered.read())["choices"] == expected
            out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_what_runs_and_says_why(trained, number):
    """Ctrl-C twice: a body that is still coming gets 503, a stream its error; a third does nothing, nor prints."""
    asked = {"model": "visualchat", "messages": [content("What is it?", [1])], "max_tokens": 64, "stream": True}
    with serving(trained, "engine.chunk=16") as (process, url), half_sent(url, asked):
        with httpx.stream("POST", f"{url}/chat/completions", json=asked, timeout=LIMIT) as running:
            lines = running.iter_lines()
            next(lines)
            process.send_signal(number)
            until(url, "/health", lambda said: said.status_code == 503)
            process.send_signal(number)
            *_, last = filter(None, lines)
            process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT)
    assert last == "data: [DONE]" or json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
    assert (process.returncode, out, err) == (0, "", "")


def test_mistakes_are_told_before_a_model_is_loaded(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        said = {
            f"port={port}": "name another port",
            "port=70000": "expected 0 to 65535",
            "host=0.0.0.0": "the server asks for no key",
            "api_keys=[short]": "expected 8 or more",
            "max_new_tokens=5000": "limits.tokens, which is 1024",
            "limits.images=0": "limits.images=0: expected more than 0",
            "folder=nothing": "no saved model there",
            "cluster=ray device=cuda:1": "each replica computes where Ray puts it",
            "cluster=ray cluster.replica=3": "replicas",
            "cluster=ray cluster.address=127.0.0.1:1": "no Ray cluster answers there",
            "cluster=ray folder=nothing": "no saved model there",
            "page.second.attention=causal": "of visualchat-web alone",
        }
        for settings, words in said.items():
            done = run(tmp_path, "visualchat-serve", *settings.split())
            assert done.code == 2, str(done)
            assert words in done.err
            assert "Traceback" not in done.err
    done = run(tmp_path, "visualchat-web", "cluster=ray")
    assert done.code == 2, str(done)
    assert "cluster is of visualchat-serve alone" in done.err
    assert "type visualchat-serve cluster=ray" in done.err
    assert not [*tmp_path.iterdir()]

"""What a server refuses: each with its status, in OpenAI's form, by name, and without a library's words."""

import base64
import io
import socket
import struct
import zlib

import pytest
from asking import PATH, as_url, body, encoded, formed, part, picture, said, user
from PIL import Image

from visualchat.engine import Engine
from visualchat.serve.settings import Limits, Settings

ASK = user("What is it?")


def refused(response, status, *words, param=None):
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"]
    assert "0x" not in error["message"]
    assert "Traceback" not in response.text
    if param is not None:
        assert error["param"] == param
    return error


UNSUPPORTED = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "auto",
    "audio": {"voice": "alloy", "format": "wav"},
    "modalities": ["text", "audio"],
    "logit_bias": {"5": 1},
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "store": True,
    "best_of": 2,
    "parallel_tool_calls": 0,  # false asks for nothing, 0 is no such value
    "mistyped": 1,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(client, name):
    response = client.post(PATH, json=body(ASK, **{name: UNSUPPORTED[name]}))
    assert refused(response, 400, name, param=name)["code"] == "unsupported_parameter"


WRONG = [
    ({"temperature": 3}, "temperature"),
    ({"temperature": 0.001}, "temperature"),
    ({"temperature": "0.5"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 9}, "n"),
    ({"n": 0}, "n"),
    ({"seed": 1 << 70}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1025}, "max_tokens"),
    ({"max_completion_tokens": 5}, None),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": ""}, "stop[0]"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usages": True}}, "stream_options.include_usages"),
    ({"messages": []}, "messages"),
    ({"messages": [said("Hello")]}, "messages"),
    ({"messages": [ASK, said("A cat.")]}, "messages"),
    ({"messages": [said("Hello"), ASK]}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages"),
    ({"messages": [{"role": "user", "content": []}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "txt": "a"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "uuid": ""}]}]}, "messages[0].content[0].uuid"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, None),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_object", "json_schema": {"name": "a", "schema": {}}}}, "response_format"),
    ({"response_format": formed({}, name="a b")}, "response_format.json_schema.name"),
    ({"response_format": formed({"type": "strin"})}, "response_format"),
    ({"response_format": formed({"not": {}})}, "response_format"),
    ({"response_format": formed({"$ref": "http://127.0.0.1:1/schema"})}, "response_format"),
    ({"response_format": formed({"$ref": "file:///etc/hostname"})}, "response_format"),
    ({"response_format": formed({"x-guidance": {"lenient": True}, "not": {}})}, "response_format"),
    ({"response_format": formed({"type": "string", "pattern": "(a|b"})}, "response_format"),
    ({"response_format": formed({"enum": ["a" * 70_000]})}, "response_format"),
    ({"messages": [{**ASK, "name": "me"}]}, "messages[0].name"),
    ({"messages": [{**user("a", 1), "role": "system"}, ASK]}, "messages"),
]


@pytest.mark.parametrize(("given", "param"), WRONG, ids=lambda value: str(value)[:80])
def test_what_is_wrong_is_named(client, given, param):
    refused(client.post(PATH, json={**body(ASK), **given}), 400, param=param)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[" * 100_000, b"null", b"[]", b'"\xff"', b'{"model": "\\ud800"}', b'{"model": NaN}', b"\x00" * 9],
    ids=lambda data: repr(data[:20]),
)
def test_a_body_that_is_not_a_request(client, data):
    refused(client.post(PATH, content=data, headers={"Content-Type": "application/json"}), 400)


def test_another_type_model_path_or_method(client):
    refused(client.post(PATH, content=b"{}", headers={"Content-Type": "text/plain"}), 415, "application/json")
    error = refused(client.post(PATH, json={**body(ASK), "model": "gpt-4o"}), 404, "'visualchat'", param="model")
    assert error["code"] == "model_not_found"
    assert refused(client.get("/v1/models/gpt-4o"), 404, "'visualchat'", param="model")["code"] == "model_not_found"
    refused(client.get("/v1/nothing"), 404, PATH)
    refused(client.post(f"{PATH}/", json=body(ASK)), 404, PATH)
    refused(client.get(PATH), 405)


ADDRESSES = [
    "http://127.0.0.1:1/cat.png",
    "https://example.com/cat.png",
    "http://169.254.169.254/latest/meta-data",
    "file:///etc/hostname",
    "/etc/hostname",
    "cat.png",
    "",
    "data:text/plain;base64,aGVsbG8=",
    "data:image/png,abc",
    "data:image/png;base64,not base64!",
    "data:image/png;base64,a",
    base64.b64encode(b"\x89PNG").decode(),
]


@pytest.mark.parametrize("url", ADDRESSES, ids=lambda url: url[:30] or "empty")
def test_nothing_is_fetched_and_no_file_is_read(client, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(1).save("cat.png")
    response = client.post(PATH, json=body({"role": "user", "content": [part(url)]}))
    error = refused(response, 400, "data:image/", param="messages[0].content[0].image_url.url")
    assert error["code"] == "invalid_image_url"


def test_no_address_in_a_request_is_asked(client):
    """Not of an image, nor by a reference in a JSON schema."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}/cat.png"
        schemas = {"$ref": url}, {"$ref": f"{url}#/a"}, {"$id": url, "$ref": "other"}, {"items": {"$ref": url}}
        asked = [body(ASK, response_format=formed(schema)) for schema in schemas]
        asked += [body({"role": "user", "content": [part(address)]}) for address in (url, f"{url}?data:image/png")]
        for given in asked:
            refused(client.post(PATH, json=given), 400)
        refused(client.post("/v1/images", json={"image_url": {"url": url}}), 400)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):  # no one came
            other.accept()


def claimed(width, height, bits=8, colours=2, data=b""):
    """A PNG that claims a size, and as a rule holds nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def whole(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


HOSTILE = {
    "bomb": claimed(60_000, 60_000),
    "small bomb": claimed(9000, 8000, bits=1, colours=0, data=bytes(8000 * (1 + 9000 // 8))),  # undamaged, 9 kB
    "empty": b"",
    "text": b"not an image",
    "cut": whole(picture(1, (64, 64)))[:-900],
    "no pixels": claimed(16, 16),
    "strip": whole(Image.new("RGB", (1000, 1))),
    "program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "numbers": whole(Image.new("F", (16, 16)), "TIFF"),
    "vectors": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_get_one_fixed_text(client, name):
    message = {"role": "user", "content": [part(as_url(picture(1))), part(encoded(HOSTILE[name]))]}
    response = client.post(PATH, json=body(message))
    error = refused(response, 400, "expected an undamaged", param="messages[0].content[1].image_url.url")
    assert error["code"] == "invalid_image"


@pytest.fixture(scope="module")
def strict(serving):
    """A server with low limits."""
    with serving(Settings(limits=Limits(body_bytes=20_000, images=2, pixels=1000, tokens=300))) as found:
        yield found


def test_limits_of_a_request(strict):
    refused(strict.post(PATH, json=body(user("a" * 30_000))), 413, "20000 bytes")
    pieces = iter([b'{"model": "', *[b"a" * 9000] * 3])
    streamed = strict.post(PATH, content=pieces, headers={"Content-Type": "application/json"})
    refused(streamed, 413, "20000 bytes")
    refused(strict.post(PATH, json=body(user("a", 1, 2), said("b"), user("c", 3))), 400, "3 images", "at most 2")
    large = [part(as_url(picture(n, (25, 25)), "JPEG")) for n in range(2)]
    error = refused(strict.post(PATH, json=body({"role": "user", "content": large})), 400, "1000 pixels")
    assert error["code"] == "too_many_pixels"
    refused(strict.post(PATH, json=body(ASK, max_tokens=301)), 400, "at most 300", param="max_tokens")
    long = strict.post(PATH, json=body(user("word " * 2000), max_tokens=300))
    assert refused(long, 400, "300", "more than")["code"] == "context_length_exceeded"


def test_a_key_is_asked_for_everywhere_but_of_health(serving):
    with serving(Settings(keys=("right-key",))) as client:
        asked = [lambda **given: client.post(PATH, json=body(ASK), **given)]
        asked += [lambda path=path, **given: client.get(path, **given) for path in ("/v1/models", "/metrics")]
        for ask in asked:
            for header in ({}, {"Authorization": "Bearer wrong-key"}, {"Authorization": "right-key"}):
                error = refused(ask(headers=header), 401, "Authorization: Bearer")
                assert error["type"] == "authentication_error"
            assert ask(headers={"Authorization": "Bearer right-key"}).status_code == 200
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", PATH, "/nothing"])
def test_a_web_page_by_another_name_is_refused(serving, path):
    """Its name may point to this machine, but is not the machine's own."""
    method = "POST" if path == PATH else "GET"
    with serving() as client:
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:8000"):
            answer = client.request(method, path, headers={"Host": host}, json=body(ASK) if path == PATH else None)
            refused(answer, 421, "Host", "keys")
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "[::1]", ""):
            assert client.request("GET", path, headers={"Host": host}).status_code != 421
        if path == PATH:
            assert 'visualchat_requests_total{status="421"} 4.0' in client.get("/metrics").text
    with serving(Settings(keys=("secret-one",))) as client:
        headers = {"Host": "visualchat.example", "Authorization": "Bearer secret-one"}
        answer = client.request("GET", path, headers=headers)
        assert answer.status_code == {PATH: 405, "/nothing": 404}.get(path, 200)


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_breaks_down_is_no_answer(serving, monkeypatch, stream):
    """A wrong run does not look right: 500, and in a stream, whose status was sent, an error in place of its end."""
    with serving() as client:
        monkeypatch.setattr(Engine, "_advance", lambda *_: (_ for _ in ()).throw(RuntimeError("/secret at 0x7f")))
        response = client.post(PATH, json=body(ASK, stream=stream))
        assert "secret" not in response.text
        if stream:
            assert '"error":{"message":"the server failed' in response.text
            assert "[DONE]" not in response.text
        else:
            refused(response, 500, "its log says why")

"""`visualchat-serve cluster=ray` as its users meet it: replicas in processes of their own, one of which is killed.

Ray starts many processes; all of them inherit a mark of the test's by which they are found.
"""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from operator import itemgetter
from pathlib import Path
from random import Random

import httpx
import pytest
from commands import LIMIT, serving, started
from PIL import Image

from visualchat.dialogue.messages import dialogue_from_messages
from visualchat.engine import Engine, Request

pytestmark = pytest.mark.cluster

MARK = "VISUALCHAT_TEST_MARK"
LONG = 1200  # tokens of an answer that is under way, for seconds, when its replica is killed


@pytest.fixture(scope="module")
def random_model(make_model, processor, tmp_path_factory):
    """A model whose answers never end by themselves, and the folder that it is saved in.

    In fp64: sums in another order, as in a batch of other requests, must choose no other token in thousands.
    """
    model = make_model(projector_type="linear_norm").double().eval()
    model.multi_modal_projector.last_norm.weight.data.mul_(4)
    model.generation_config.suppress_tokens = processor.end_token_ids
    folder = tmp_path_factory.mktemp("random") / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, folder


@pytest.fixture
def marked():
    """Variables that mark the processes of a test; all of these must be gone when it ends."""
    short = tempfile.mkdtemp(prefix="ray-")  # sockets lie in it, whose paths must be short
    variables = {MARK: uuid.uuid4().hex, "RAY_TMPDIR": short}
    yield variables
    left = until(lambda: processes(variables) or None, no=True)
    for number in left:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    shutil.rmtree(short, ignore_errors=True)
    assert not left


def processes(variables, title=""):
    """Ids of the processes that have the mark, and a title like this."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if variables[MARK].encode() in (folder / "environ").read_bytes():
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
                if title in line and (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    found.append(int(folder.name))
    return found


def replicas(variables):
    return processes(variables, "ray::ServeReplica")


def in_hand(url):
    """How many requests each replica says that it has, by the ids of their processes."""
    told = httpx.get(url.replace("/v1", "/metrics"), timeout=LIMIT).text
    found = re.findall(r'^visualchat_replica_requests_in_hand{replica=".+:(\d+)"} (\d+)', told, re.MULTILINE)
    return {int(number): int(count) for number, count in found}


def until(look, no=False, seconds=120):
    """What is found once it is there, or once it is gone; the last that was found where that does not come."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if bool(found) is not no or time.monotonic() > end:
            return found or []
        time.sleep(0.1)


def picture(seed):
    """The same one each time."""
    return Image.frombytes("RGB", (16, 16), Random(seed).randbytes(16 * 16 * 3))


def user(text, *pictures):
    parts = []
    for shown in pictures:
        file = io.BytesIO()
        shown.save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def asked(*messages, **settings):
    return {"model": "visualchat", "messages": [*messages], **settings}


def computed(post, messages):
    """How many tokens of a conversation with one image were not known to the replica that answered."""
    usage = httpx.post(post, json=asked(*messages, max_tokens=4), timeout=LIMIT).json()["usage"]
    assert usage["prompt_tokens_details"]["image_tokens"] == 4
    return usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]


def answers_of(random_model, bodies):
    """What one engine answers to the same requests."""
    model, processor, _ = random_model
    engine, handles = Engine(model, processor), []
    for body in bodies:
        settings = {"max_new_tokens": body["max_tokens"], "temperature": body.get("temperature", 0.0)}
        dialogue = dialogue_from_messages(body["messages"])
        handles.append(engine.submit(Request.of(processor, dialogue, seed=body.get("seed"), **settings)))
    return [handle.result().text for handle in handles]


def streamed(url, body, begun):
    """The text of a streamed answer; what is noted in `begun` is how much of it had come before the replica's end."""
    said, ended = "", False
    with httpx.stream("POST", f"{url}/chat/completions", json={**body, "stream": True}, timeout=LIMIT) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            ended = ended or line == "data: [DONE]"
            if line and not ended:
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                said += event["choices"][0]["delta"].get("content", "")
                begun(len(said))
    assert ended
    return said


def test_no_request_is_lost_when_one_of_two_replicas_is_killed(random_model, marked):
    """Known images are found; streams that had begun continue where they were, greedy and sampled; all ends cleanly."""
    folder = random_model[2]
    sampled = {"temperature": 1.0, "seed": 5}
    begun = [asked(user("What is it?", picture(0)), max_tokens=LONG, **settings) for settings in ({}, sampled)]
    others = [
        asked(user("What is it?", picture(number)), max_tokens=100, **(sampled if number % 2 else {}))
        for number in range(1, 9)
    ]
    expected = answers_of(random_model, [*begun, *others])
    assert len({*expected}) == len(expected)
    unseeded = asked(user("Say something."), max_tokens=100, temperature=1.0)
    words = f"folder={folder}", "cluster=ray", "limits.tokens=1500"
    with serving(folder.parent, *words, **marked) as (process, url):
        assert len(replicas(marked)) == 2
        post = f"{url}/chat/completions"
        refused = httpx.post(post, json={**begun[0], "max_tokens": 1501}, timeout=LIMIT)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")

        first = user("What is it?", picture(20))
        httpx.post(post, json=asked(first, max_tokens=4), timeout=LIMIT)
        later = [first, {"role": "assistant", "content": "A cat."}, user("Sure?")]
        anew, unknown = (computed(post, [user("And again?", picture(number))]) for number in (20, 21))
        assert anew < unknown - 4  # the image's own tokens, and its label's
        assert computed(post, later) < unknown

        came = [0, 0]
        with ThreadPoolExecutor(20) as clients:
            streams = [
                clients.submit(streamed, url, body, lambda size, number=number: came.__setitem__(number, size))
                for number, body in enumerate(begun)
            ]
            assert until(lambda: min(came) > 0)
            busiest = max(in_hand(url).items(), key=itemgetter(1))[0]  # it has one of the two, or both
            streams += [clients.submit(streamed, url, body, int) for body in others]
            plain = [clients.submit(httpx.post, post, json=body, timeout=LIMIT) for body in [*others, unseeded]]
            os.kill(busiest, signal.SIGKILL)
            at_kill = list(came)
            assert [stream.result() for stream in streams] == expected
            answers = [answer.result() for answer in plain]
        assert all(size < len(text) for size, text in zip(at_kill, expected, strict=False))
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        assert [answer.json()["choices"][0]["message"]["content"] for answer in answers[:-1]] == expected[2:]
        assert answers[-1].json()["usage"]["completion_tokens"] == 100
        figures = httpx.get(url.replace("/v1", "/metrics"), timeout=LIMIT).text
        assert "visualchat_requests_in_hand 0.0" in figures
        assert f'visualchat_requests_total{{status="200"}} {4 + len(streams) + len(plain)}.0' in figures
        assert until(lambda: len(in_hand(url)) == 2)  # another one came

        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches all that the shell started
        out, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, err
        assert "is repeated on another one" in out
        assert not until(lambda: processes(marked), no=True)


def test_replicas_come_and_go_on_a_ray_cluster_of_two_nodes(random_model, marked):
    """Each node has room for one. The second comes with the load; Ray and its nodes outlive the server."""
    folder = random_model[2]
    variables = {**marked, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2}
    small = "--num-cpus=1", "--object-store-memory=80000000", "--block"
    port = free_port()
    with ExitStack() as nodes:
        for words in (("--head", f"--port={port}", "--include-dashboard=false"), (f"--address=127.0.0.1:{port}",)):
            node = nodes.enter_context(started(folder.parent, "ray", "start", *words, *small, **variables))
            lines = iter(node.stdout.readline, "")  # until it ends
            assert any("runtime started" in line for line in lines), node.stderr.read()
        words = ("replicas=1", "most_replicas=2", "target_requests=0.2", "grow_seconds=1", f"address=127.0.0.1:{port}")
        typed = f"folder={folder}", "cluster=ray", "limits.tokens=1500", *(f"cluster.{word}" for word in words)
        with serving(folder.parent, *typed, **variables) as (process, url):
            body = asked(user("What is it?", picture(1)), max_tokens=200)
            answers = []
            while len(replicas(marked)) < 2:
                answers.append(streamed(url, body, int))
            assert {*answers} == {*answers_of(random_model, [body])}
            assert len({ray_node(number) for number in replicas(marked)}) == 2
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=LIMIT)
            assert process.returncode == 0, f"{out}{err}"
        assert not until(lambda: replicas(marked), no=True)
        assert processes(marked, "gcs_server")


def free_port():
    """Above those that Ray keeps for its workers."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    return port if port >= 20000 else free_port()


def ray_node(number):
    """The node that a process belongs to: the one that started it."""
    return (Path("/proc") / str(number) / "stat").read_text().rsplit(")", 1)[1].split()[1]

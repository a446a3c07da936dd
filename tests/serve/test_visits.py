"""Places: who hangs up gives his back at once, a full house says so, and a server that stops ends what runs."""

import asyncio
import json
import pickle
import random
import threading

import pytest
from asking import MOST, alone, body, user, visit

from visualchat.engine import Engine
from visualchat.serve.app import build_app
from visualchat.serve.errors import HUNG_UP, queue_full
from visualchat.serve.local import Local
from visualchat.serve.settings import Limits, Settings


@pytest.fixture
def opened(loud, processor):
    """An app and its engine, which steps only when `run` says so."""

    def make(settings=None, **engine):
        working = Engine(loud, processor, **engine)
        chosen = settings or Settings()
        backend = Local(working, chosen)
        gate = build_app(backend, chosen)
        gate.backend = backend
        return gate, working

    return make


async def until(holds):
    """Wait until something holds; a test that waits in vain is ended by its own limit."""
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.001)


def in_engine(engine):
    with engine._lock:
        return len(engine._all())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_place_at_once(opened, stream):
    """While it waits: the engine's thread does not run yet, so nothing but the hang-up ends the request."""
    app, engine = opened()
    engine._thread = object()  # as if it ran: whoever reads waits for it

    async def scenario():
        async def submitted():
            await until(lambda: in_engine(engine))

        status, came = await visit(app, body(user("What is it?", 1), stream=stream), leave=submitted)
        assert status in ((200, None) if stream else (HUNG_UP,))
        assert b"[DONE]" not in came
        assert not app.visits

    asyncio.run(scenario())
    engine._thread = None
    engine.step()
    assert in_engine(engine) == 0
    assert engine.stats.running == engine.stats.waiting == 0


def test_a_client_that_hangs_up_while_its_images_wait_to_be_decoded(opened):
    """Its place is free at once, and nothing of it reaches the engine."""
    app, engine = opened()
    free = threading.Event()

    async def scenario():
        backend = app.backend
        busy = [backend._decoders.submit(free.wait) for _ in range(backend._decoders._max_workers)]

        async def queued():
            await until(lambda: backend._decoders._work_queue.qsize())

        status, _ = await visit(app, body(user("What is it?", 1)), leave=queued)
        assert (status, app.visits) == (HUNG_UP, set())
        free.set()
        for work in busy:
            await asyncio.wrap_future(work)

    asyncio.run(scenario())
    assert in_engine(engine) == 0


def test_clients_by_the_dozen_of_whom_a_third_hang_up_lose_nothing(opened, loud, processor):
    app, engine = opened(max_running=4, max_waiting=200)
    expected = [alone(loud, processor, user("What is it?", seed)) for seed in range(6)]
    rng = random.Random(0)

    async def client(number):
        leaves = number % 3 == 0

        async def soon():
            for _ in range(rng.randrange(30)):
                await asyncio.sleep(0.001)

        sent = body(user("What is it?", number % 6), stream=number % 2 == 1)
        status, came = await visit(app, sent, leave=soon if leaves else None)
        if leaves:
            return 0
        assert status == 200
        if number % 2 == 0:
            text = json.loads(came)["choices"][0]["message"]["content"]
        else:
            found = [json.loads(event[6:]) for event in came.decode().split("\n\n")[:-2]]
            text = "".join(event["choices"][0]["delta"].get("content", "") for event in found)
        assert text == expected[number % 6]
        return 1

    async def scenario():
        return sum(await asyncio.gather(*map(client, range(96))))

    with engine:
        assert asyncio.run(scenario()) == 64
        assert not app.visits
        asyncio.run(until(lambda: engine.stats.running == engine.stats.waiting == 0))


def test_a_full_house_says_when_to_come_again(opened):
    app, engine = opened(max_running=1, max_waiting=0)
    engine._thread = object()

    async def scenario():
        async def refused():
            await until(lambda: in_engine(engine))
            status, came = await visit(app, body(user("Another?")))
            assert (status, json.loads(came)["error"]["code"]) == (429, "queue_full")

        await visit(app, body(user("What is it?")), leave=refused)
        assert not app.visits

    asyncio.run(scenario())


def test_a_full_queue_of_the_engine_refuses_all_answers_of_a_request(opened):
    app, engine = opened(max_running=1, max_waiting=2)
    engine._thread = object()

    async def scenario():
        async def refused():
            await until(lambda: in_engine(engine))
            status, came = await visit(app, body(user("Another?"), n=3))
            assert (status, json.loads(came)["error"]["type"]) == (429, "rate_limit_error")
            left.append(engine.stats.waiting)

        await visit(app, body(user("What is it?")), leave=refused)

    left = []
    asyncio.run(scenario())
    assert left == [1]
    assert engine.stats.waiting == 0


def test_more_answers_than_there_are_places_are_no_matter_of_time(opened):
    app, engine = opened(max_running=1, max_waiting=1)
    status, came = asyncio.run(visit(app, body(user("What is it?"), n=3)))
    error = json.loads(came)["error"]
    assert (status, error["param"]) == (400, "n")
    assert error["message"] == "n is 3, and this server gives 2 answers at a time"
    assert in_engine(engine) == 0


def test_a_body_or_an_answer_that_takes_too_long(opened):
    app, engine = opened(Settings(limits=Limits(upload_seconds=0.01, seconds=0.01)))
    engine._thread = object()
    status, came = asyncio.run(visit(app, None))
    assert (status, "did not come" in came.decode()) == (408, True)
    status, came = asyncio.run(visit(app, body(user("What is it?"))))
    assert (status, json.loads(came)["error"]["code"]) == (504, "timeout")
    status, came = asyncio.run(visit(app, body(user("What is it?"), stream=True)))
    assert (status, b'"code":"timeout"' in came, b"[DONE]" in came) == (200, True, False)
    assert not app.visits


def test_a_client_that_leaves_before_its_body_has_come(opened):
    app, _ = opened()

    async def scenario():
        async def at_once():
            await until(lambda: app.visits)

        await visit(app, None, leave=at_once)
        assert not app.visits

    asyncio.run(scenario())


def test_a_server_that_stops_ends_what_runs_and_takes_nothing_new(opened, loud, processor):
    app, engine = opened()
    engine._thread = object()

    async def scenario():
        running = asyncio.create_task(visit(app, body(user("What is it?", 1))))
        await until(lambda: in_engine(engine))
        app.stopping = True
        status, came = await visit(app, body(user("Another?")))
        assert (status, json.loads(came)["error"]["code"]) == (503, "stopping")
        await asyncio.to_thread(lambda: [None for _ in range(50 * MOST) if engine.step()])
        return await running

    status, came = asyncio.run(scenario())
    assert status == 200
    assert json.loads(came)["choices"][0]["message"]["content"] == alone(loud, processor, user("What is it?", 1))


def test_a_mistake_may_come_from_another_process():
    came = pickle.loads(pickle.dumps(queue_full()))
    assert (came.status, came.headers, came.body()) == (429, {"Retry-After": "1"}, queue_full().body())

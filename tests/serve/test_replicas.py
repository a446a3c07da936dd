"""Replicas without Ray's processes: where a request goes, and what is told of an answer whose replica was lost."""

import asyncio
import threading
from collections import Counter

import pytest
from asking import body, said, user
from ray import serve
from ray.exceptions import ActorDiedError
from ray.serve._private.router import SingletonThreadRouter
from ray.serve.exceptions import DeploymentUnavailableError

from visualchat.engine import Answer, Usage
from visualchat.engine.image_store import StoreStats
from visualchat.serve.backend import Figures, Piece
from visualchat.serve.cluster import replicas
from visualchat.serve.cluster.replica import Plan
from visualchat.serve.cluster.replies import MOST_REPEATS, RepeatedReply, repeated
from visualchat.serve.cluster.routes import in_order, ranked, route_of
from visualchat.serve.cluster.settings import ClusterSettings
from visualchat.serve.errors import ApiError, queue_full
from visualchat.serve.metrics import Metrics
from visualchat.serve.protocol import ChatRequest
from visualchat.serve.settings import Settings

NAMES = ["one", "two", "three"]


def route(*messages, scope=""):
    return route_of(ChatRequest.model_validate(body(*messages)), scope)


def test_a_conversation_keeps_its_route_and_shares_it_with_all_about_its_first_image():
    first = route(user("What is it?", 1))
    assert route(user("What is it?", 1), said("A cat."), user("And now?", 2)) == first
    assert route({"role": "system", "content": "Be brief."}, user("Compare!", 1, 3)) == first
    assert route(user("What is it?", 1), scope="key 1") != first
    text = route({"role": "system", "content": "Be brief."}, user("Hello"))
    assert route({"role": "system", "content": "Be brief."}, user("Hello"), said("Yes?"), user("This", 4)) == text
    assert len({first, text, route(user("Hello")), route(user("What is it?", 2))}) == 4


def test_routes_spread_over_replicas_and_only_those_of_a_lost_one_move():
    before = {number: ranked(str(number), NAMES) for number in range(600)}
    for name, count in Counter(order[0] for order in before.values()).items():
        assert 150 < count < 250, name
    for number, order in before.items():
        assert ranked(str(number), ["one", "two"]) == [name for name in order if name != "three"]


def test_a_request_that_would_wait_at_its_first_choice_goes_to_the_next():
    first, second, third = ranked("route", NAMES)
    assert in_order("route", {first: 3, second: 0, third: 1}, running=4) == [first, second, third]
    assert in_order("route", {first: 4, second: 0, third: 1}, running=4) == [second, third, first]
    assert in_order("route", {first: 9, second: 7, third: 8}, running=4) == [second, third, first]


class Stream:
    """What a replica sends; an exception is raised in its place."""

    def __init__(self, *events):
        self.events, self.cancelled = iter(events), False

    def __aiter__(self):
        return self

    async def __anext__(self):
        for event in self.events:
            if isinstance(event, Exception) and not isinstance(event, ApiError):
                raise event
            return event
        raise StopAsyncIteration

    def cancel(self):
        self.cancelled = True


def lost():
    return ActorDiedError()


def ended(text):
    return Answer([1], text, "stop", Usage(3, 0, 0, 1), 0.001, 0.002)


def told(*streams):
    """What a client is told when these are the streams of the replicas that its request comes to."""
    left = iter(streams)
    found = []

    async def scenario():
        reply = RepeatedReply(lambda: next(left))
        await reply.begin()
        async for index, event in reply.events():
            found.append((index, event.text))
        return reply

    try:
        asyncio.run(scenario())
    except (RuntimeError, ApiError, ActorDiedError) as error:
        found.append(error)
    return found


def test_what_was_told_before_a_replica_was_lost_is_not_told_again():
    whole = (None, (0, Piece("a ")), (1, Piece("x")), (0, Piece("b")), (1, ended("x")), (0, ended("a b")))
    expected = told(Stream(*whole))
    assert [text for _, text in expected] == ["a ", "x", "b", "x", "a b"]
    other = (None, (1, Piece("x")), (1, ended("x")), (0, Piece("a ")), (0, Piece("b")), (0, ended("a b")))
    for sent in range(len(whole)):  # lost after so many of its events
        cut = Stream(*whole[:sent], lost())
        found = told(cut, Stream(*other))
        assert sorted(found) == sorted(expected), sent
        assert [text for index, text in found if index == 0] == ["a ", "b", "a b"]
        assert cut.cancelled
    again = told(Stream(*whole[:3], lost()), Stream(None, (0, Piece("a ")), lost()), Stream(*other))
    assert sorted(again) == sorted(expected)


def test_an_answer_that_cannot_be_continued_ends_with_an_error():
    begun = Stream(None, (0, Piece("a ")), (0, Piece("b")), lost())
    *_, error = told(begun, Stream(None, (0, Piece("a ")), (0, Piece("c"))))
    assert "not the one that was begun" in str(error)
    begun = Stream(None, (0, Piece("a ")), (0, Piece("b")), lost())
    *_, error = told(begun, Stream(None, (0, Piece("a ")), (0, ended("a "))))
    assert "ended before" in str(error)


def test_a_request_that_ends_every_replica_is_given_up():
    streams = [Stream(None, (0, Piece("a")), lost()) for _ in range(MOST_REPEATS + 2)]
    first, error = told(*streams)
    assert (first, type(error)) == ((0, "a"), ActorDiedError)
    assert [stream.cancelled for stream in streams] == [True] * (MOST_REPEATS + 1) + [False]


def test_a_refusal_is_the_replicas_own_also_after_a_loss():
    for streams in ([Stream(queue_full())], [Stream(lost()), Stream(queue_full())]):
        (error,) = told(*streams)
        assert (error.status, error.code) == (429, "queue_full")


def test_without_any_replica_requests_are_told_so_and_metrics_go_on():
    """As when replicas end at once whenever they are started."""
    for streams in ([Stream(unavailable())], [Stream(lost()), Stream(unavailable())]):
        (error,) = told(*streams)
        assert (error.status, error.code) == (503, "no_replica")
    *_, error = told(Stream(None, (0, Piece("a")), lost()), Stream(unavailable()))
    assert (error.status, error.code) == (503, "no_replica")

    async def ask():
        raise unavailable()

    with pytest.raises(ApiError, match="no replica of the model"):
        asyncio.run(repeated(ask))
    figures = asyncio.run(replicas.Replicas(Handle(), 1, 1, "visualchat").figures())
    assert (figures.in_hand, figures.store.entries) == ({}, 0)


def unavailable():
    return DeploymentUnavailableError("visualchat")


class Handle:
    """Of an application without replicas."""

    def options(self, **settings):
        return self

    def broadcast(self, name):
        return self

    async def results_async(self, **settings):
        raise unavailable()


def test_times_of_a_repeated_answer_are_those_that_its_client_saw():
    streams = iter([Stream(None, (0, Piece("a")), lost()), Stream(None, (0, Piece("a")), (0, ended("a")))])

    async def scenario():
        reply = RepeatedReply(lambda: next(streams))
        await asyncio.sleep(0.05)  # at the first replica
        await reply.begin()
        return [event async for _, event in reply.events()][-1]

    answer = asyncio.run(scenario())
    assert answer.first_token >= 0.05
    assert answer.seconds >= answer.first_token


def test_nothing_asks_ray_once_it_has_ended(monkeypatch):
    """Ray ends a process, at once and with exit code 1, that asks it for something after its end."""
    ended, asked_late = threading.Event(), threading.Event()
    loop = asyncio.new_event_loop()

    async def probe():  # as Ray Serve's router does, in a thread of its own, while replicas come and go
        while True:
            if ended.is_set():
                asked_late.set()
            await asyncio.sleep(0)

    def shutdown():
        ended.set()
        asked_late.wait(0.5)

    for where, name, does in (
        (replicas.ray, "init", lambda *words, **settings: None),
        (replicas.ray, "cluster_resources", lambda: {"CPU": 2}),
        (replicas.ray, "shutdown", shutdown),
        (serve, "start", lambda **settings: None),
        (serve, "run", lambda *words, **settings: RepeatedReply),
        (replicas, "Replicas", lambda *words: None),
        (SingletonThreadRouter, "_asyncio_loop", loop),
    ):
        monkeypatch.setattr(where, name, does)
    asyncio.run_coroutine_threadsafe(probe(), loop)
    threading.Thread(target=loop.run_forever, daemon=True).start()
    plan = Plan("model", None, None, {}, {"max_running": 1, "max_waiting": 1}, Settings())
    with replicas.running(plan, ClusterSettings()):
        pass
    assert ended.is_set()
    assert not asked_late.is_set()


def test_metrics_tell_the_sums_and_what_each_replica_that_lives_has_in_hand():
    metrics = Metrics()
    one, two = (Figures(StoreStats(number, 0, 0, 1, 0, 8, 0), {f"here:{number}": number}) for number in (1, 2))
    told = metrics.text(Figures.of_all([one, two])).decode()
    assert "visualchat_image_store_hits 3.0" in told
    assert 'visualchat_replica_requests_in_hand{replica="here:1"} 1.0' in told
    assert 'visualchat_replica_requests_in_hand{replica="here:2"} 2.0' in told
    told = metrics.text(Figures.of_all([two])).decode()
    assert "here:1" not in told
    assert "visualchat_image_store_entries 0.0" in metrics.text(Figures.of_all([])).decode()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"replicas": 0}, "cluster.replicas=0: expected more than 0"),
        ({"gpus": -1}, "cluster.gpus=-1: expected"),
        ({"address": "ray://head:10001"}, "expected auto, or HOST:PORT"),
        ({"most_replicas": 1}, "expected at least cluster.replicas, which is 2"),
        ({"object_store_bytes": 10}, "expected 80000000 or more"),
    ],
)
def test_settings_out_of_range(given, words):
    with pytest.raises(ValueError, match=words):
        ClusterSettings(**given)


def test_replicas_that_do_not_fit_into_a_machine():
    ClusterSettings(replicas=2, cpus=1, gpus=0).check_fits(cores=2, gpus=0)
    with pytest.raises(ValueError, match=r"4 replicas of cluster.cpus=1 need 4: this machine has 2"):
        ClusterSettings(replicas=2, most_replicas=4).check_fits(cores=2, gpus=0)
    with pytest.raises(ValueError, match=r"cluster.gpus=1 need 2: this machine has 1"):
        ClusterSettings(gpus=1).check_fits(cores=2, gpus=1)


def test_a_ray_that_does_not_start_is_told_with_what_to_do(monkeypatch):
    def init(*_, **__):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(replicas.ray, "init", init)
    with pytest.raises(ValueError, match=r"Ray did not start .*timed out during startup\.\ntry again"):
        replicas._connect(ClusterSettings())

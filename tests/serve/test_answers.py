"""Answers over HTTP are the model's own, to the images that came with them, whoever else asks what at the same time."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from asking import MOST, PATH, alone, body, events, picture, said, user

from visualchat.chat import ChatSession
from visualchat.serve.settings import Settings


def answer(client, *messages, **settings):
    response = client.post(PATH, json=body(*messages, **settings))
    assert response.status_code == 200, response.text
    return response.json()


def text_of(response):
    return response["choices"][0]["message"]["content"]


ROUNDS = [
    [user("What is it?", 0)],
    [user("What is it?", 0), said("A cat."), user("And these, compared?", 1, 2)],
    [{"role": "system", "content": "Be brief."}, user("One?", 1), said("No."), user("Why?")],
    [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Nothing to see."}],
]


def test_images_are_never_mixed_up(client, loud, processor):
    """A, B, A, ... interleaved, of equal size and with equal text, at once and again when all of them are known."""
    asked = [user("What is it?", number % 5) for number in range(20)]
    expected = [alone(loud, processor, message) for message in asked]
    assert len(set(expected)) == 5
    with ThreadPoolExecutor(10) as clients:
        for _ in range(2):
            assert list(clients.map(lambda message: text_of(answer(client, message)), asked)) == expected


@pytest.mark.parametrize("messages", ROUNDS, ids=len)
def test_plain_and_streamed_answers_are_those_of_the_model_alone(client, loud, processor, messages):
    same = [{**message, "role": "system"} if message["role"] == "developer" else message for message in messages]
    expected = alone(loud, processor, *same)
    plain = answer(client, *messages)
    assert text_of(plain) == expected
    assert (plain["object"], plain["model"]) == ("chat.completion", "visualchat")
    request = body(*messages, stream=True, stream_options={"include_usage": True})
    with client.stream("POST", PATH, json=request) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        first, *pieces, last, usage = events("".join(response.iter_text()))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == expected
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == plain["choices"][0]["finish_reason"]
    assert {event["id"] for event in (first, *pieces, last, usage)} == {usage["id"]}
    assert [event["usage"] for event in (first, *pieces, last)] == [None] * (len(pieces) + 2)
    assert usage["choices"] == []
    for counted in (usage["usage"], plain["usage"]):
        counted.pop("prompt_tokens_details").pop("cached_tokens")
    assert usage["usage"] == plain["usage"]


def test_an_answer_is_a_sessions(client, loud, processor):
    session = ChatSession(loud, processor, max_new_tokens=MOST)
    assert text_of(answer(client, user("What is it?", 3))) == "".join(session.ask("What is it?", [picture(3)]))


def test_usage_tells_what_was_known_already(serving):
    """A known image behind other text, than which nothing is common but how every prompt begins, and a known prompt."""

    def asked(client, system, seed):
        messages = {"role": "system", "content": system}, user("Really?", 8), said("No."), user("What is it?", seed)
        usage = answer(client, *messages)["usage"]
        return usage, usage["prompt_tokens_details"]["cached_tokens"]

    with serving() as client:
        first = answer(client, user("What is it?", 7))["usage"]
        new, known_of_new = asked(client, "Be brief.", 9)
        again, known = asked(client, "Do talk.!", 7)
        _, known_of_same = asked(client, "Do talk.!", 7)
    assert first["prompt_tokens_details"] == {"cached_tokens": 0, "image_tokens": 4}
    assert first["total_tokens"] == first["prompt_tokens"] + first["completion_tokens"]
    assert new["prompt_tokens_details"]["image_tokens"] == again["prompt_tokens_details"]["image_tokens"] == 8
    assert known == known_of_new + 4 + 4  # images 8 and 7
    assert known_of_same == again["prompt_tokens"] - 1


@pytest.mark.parametrize("share", [False, True])
def test_what_one_key_showed_is_reused_for_others_only_if_that_is_set(serving, share):
    settings = Settings(keys=("first-key", "second-key"), reuse_across_keys=share)
    known = []
    with serving(settings) as client:
        for key in ("first-key", "second-key", "first-key"):
            client.headers["Authorization"] = f"Bearer {key}"
            usage = answer(client, user("What is it?", 7))["usage"]
            known.append(usage["prompt_tokens_details"]["cached_tokens"])
            entries = client.engine.store.stats.entries
    rest = usage["prompt_tokens"] - 1
    assert known == ([0, rest, rest] if share else [0, 0, rest])
    assert entries == (1 if share else 2)


def test_placeholders_that_are_typed_are_text(client, loud, processor, monkeypatch):
    """Also special tokens: those of a prompt are the template's, whatever is typed."""
    requests, submit = [], client.engine.submit
    monkeypatch.setattr(client.engine, "submit", lambda request: requests.append(request) or submit(request))
    special = " ".join(processor.tokenizer.all_special_tokens)
    words = f"{special} <image> <|image_pad|> ### Image 1:\\n what is it?"
    plain = answer(client, {"role": "user", "content": words})
    assert plain["usage"]["prompt_tokens_details"]["image_tokens"] == 0
    assert text_of(plain) == alone(loud, processor, {"role": "user", "content": words})
    shown = answer(client, user(words, 1))
    assert shown["usage"]["prompt_tokens_details"]["image_tokens"] == 4
    answer(client, user("What is it?"))
    answer(client, user("What is it?", 1))
    known = processor.tokenizer.all_special_ids
    counts = [Counter(token for token in request.tokens.ids if token in known) for request in requests]
    assert counts[:2] == counts[2:]


def test_sampling_stops_and_several_answers(client, loud, processor):
    message = user("What is it?", 1)
    many = answer(client, message, n=3, temperature=1.5, top_p=0.9, seed=5, user="me", tools=[], logprobs=None)
    found = [choice["message"]["content"] for choice in many["choices"]]
    assert [choice["index"] for choice in many["choices"]] == [0, 1, 2]
    assert found == [alone(loud, processor, message, temperature=1.5, top_p=0.9, seed=5 + n) for n in range(3)]
    assert len(set(found)) > 1
    assert many["usage"]["completion_tokens"] >= 3
    streamed = client.post(PATH, json=body(message, n=3, temperature=1.5, top_p=0.9, seed=5, stream=True)).text
    texts = ["", "", ""]
    for event in events(streamed):
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == found
    whole = text_of(answer(client, message))
    stop = whole[2:4]
    cut = answer(client, message, stop=[stop, "never"])["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == (whole[: whole.find(stop)], "stop")
    short = answer(client, message, max_tokens=1, max_completion_tokens=1)
    assert (short["usage"]["completion_tokens"], short["choices"][0]["finish_reason"]) == (1, "length")


def test_models_health_and_metrics(client):
    answer(client, user("What is it?", 1))
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["visualchat"]
    assert client.get("/v1/models/visualchat").json() == client.get("/v1/models").json()["data"][0]
    assert client.get("/health").json() == {"status": "ok"}
    assert client.head("/health").status_code == 200
    described = client.get("/openapi.json").json()["paths"]
    assert described.keys() == {*(PATH, "/v1/images", "/v1/models", "/v1/models/{name}", "/metrics", "/health")}
    told = client.get("/metrics")
    figures = dict(line.rsplit(" ", 1) for line in told.text.splitlines() if not line.startswith("#"))
    assert float(figures['visualchat_requests_total{status="200"}']) >= 1
    assert float(figures["visualchat_answer_tokens_total"]) >= 1
    assert float(figures["visualchat_image_store_entries"]) >= 1
    assert float(figures["visualchat_requests_in_hand"]) == 0

"""What a request may ask beside an answer: log-probabilities, JSON of a form, pictures that the server knows."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from asking import PATH, alone, as_url, body, events, formed, part, picture, user

from visualchat.engine import Engine, Score
from visualchat.engine.image_store import ImageStore
from visualchat.images.feature_store import image_key
from visualchat.serve.errors import ApiError
from visualchat.serve.settings import Limits, Settings
from visualchat.serve.vocabulary import Logprobs, Vocabulary

IMAGES = "/v1/images"


def asked(client, path, sent, status=200):
    response = client.post(path, json=sent)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def choice(client, *messages, **settings):
    return asked(client, PATH, body(*messages, **settings))["choices"][0]


def text_of(client, *messages, **settings):
    return choice(client, *messages, **settings)["message"]["content"]


def spelled(logprobs):
    return b"".join(bytes(token["bytes"]) for token in logprobs["content"]).decode(errors="replace")


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.2, "seed": 5, "n": 2}, {"top_logprobs": 0}], ids=str)
def test_log_probabilities_are_of_the_tokens_that_the_text_shows(client, settings):
    wish = {"logprobs": True, "top_logprobs": 3, "max_tokens": 12, **settings}
    sent = body(user("What is it?", 1), **wish)
    choices = asked(client, PATH, sent)["choices"]
    for found in choices:
        assert spelled(found["logprobs"]) == found["message"]["content"]
        assert found["logprobs"]["refusal"] is None
        for token in found["logprobs"]["content"]:
            assert bytes(token["bytes"]).decode(errors="replace") == token["token"]
            top = [other["logprob"] for other in token["top_logprobs"]]
            assert top == sorted(top, reverse=True)
            assert len(top) == wish["top_logprobs"]
            assert all(token["logprob"] <= value for value in top[:1])
            if top and not settings:  # greedy: the likeliest
                assert token["logprob"] == top[0] < 0
    streamed = [[] for _ in choices]
    for event in events(client.post(PATH, json={**sent, "stream": True}).text):
        (piece,) = event["choices"]
        streamed[piece["index"]] += (piece["logprobs"] or {"content": []})["content"]
    for pieces, found in zip(streamed, choices, strict=True):
        content = found["logprobs"]["content"]
        assert [token["bytes"] for token in pieces] == [token["bytes"] for token in content]
        told = [[token["logprob"] for token in tokens] for tokens in (pieces, content)]
        assert told[0] == pytest.approx(told[1], abs=1e-4)  # the second time the prompt was known


def test_log_probabilities_end_where_a_stop_text_cuts_the_answer(client):
    whole = text_of(client, user("What is it?", 1), max_tokens=12)
    stop = whole[5:7]
    cut = choice(client, user("What is it?", 1), max_tokens=12, stop=stop, logprobs=True)
    assert cut["message"]["content"] == whole[: whole.find(stop)]
    assert spelled(cut["logprobs"]) == cut["message"]["content"]


def test_the_bytes_of_a_character_come_with_it(loud, processor):
    """A character of several tokens, each no text alone; special tokens are none of the text."""
    ids = [*processor.tokenizer("é😀a", add_special_tokens=False)["input_ids"], *processor.end_token_ids]
    assert len(ids) == 8
    handle = SimpleNamespace(scores=[Score(token, -1.0, ()) for token in ids])
    logprobs = Logprobs(handle, processor.tokenizer, Vocabulary(Engine(loud, processor)))
    pieces = [logprobs.behind(text) for text in ("é", "😀", "a")]
    assert [b"".join(bytes(token["bytes"]) for token in piece).decode() for piece in pieces] == ["é", "😀", "a"]
    assert [len(piece) for piece in pieces] == [2, 4, 1]


FORM = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "notes": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["shape", "count", "notes"],
    "additionalProperties": False,
}


def fits(text):
    found = json.loads(text)
    assert list(found) == ["shape", "count", "notes"]
    assert found["shape"] in ("circle", "square")
    assert isinstance(found["count"], int)
    assert 0 <= found["count"] <= 99
    assert len(found["notes"]) <= 2
    assert all(isinstance(note, str) and len(note) <= 3 for note in found["notes"])


def test_json_of_a_form_whoever_else_asks(client, loud, processor):
    """Greedy and sampled, in one batch with answers that may say anything and say what they say alone."""
    plain = [alone(loud, processor, user("What is it?", seed)) for seed in range(4)]
    wishes = [{}, {"temperature": 1.5, "seed": 1}, {"temperature": 1.0, "top_p": 0.5, "seed": 2}]
    bound = {"max_tokens": 120, "response_format": formed(FORM)}
    expected = [choice(client, user("What is it?", 1), **bound, **wish) for wish in wishes]
    for found in expected:
        fits(found["message"]["content"])
        assert found["finish_reason"] == "stop"
    with ThreadPoolExecutor(8) as clients:
        free = clients.map(lambda seed: text_of(client, user("What is it?", seed % 4)), range(8))
        again = clients.map(lambda n: choice(client, user("What is it?", 1), **bound, **wishes[n % 3]), range(6))
        assert list(free) == plain * 2
        assert list(again) == expected * 2


def test_any_json_object_and_the_end_of_tokens(client):
    free = text_of(client, user("What is it?", 1))
    assert text_of(client, user("What is it?", 1), response_format={"type": "text"}) == free
    anything = choice(client, user("What is it?", 1), response_format={"type": "json_object"}, max_tokens=200)
    assert anything["finish_reason"] == "stop"
    assert isinstance(json.loads(anything["message"]["content"]), dict)
    cut = choice(client, user("What is it?", 1), response_format=formed(FORM), max_tokens=9)
    assert cut["message"]["content"].startswith('{"shape":')
    assert cut["finish_reason"] == "length"
    streamed = client.post(PATH, json=body(user("?"), max_tokens=120, response_format=formed(FORM), n=2, stream=True))
    texts = ["", ""]
    for event in events(streamed.text):
        (piece,) = event["choices"]
        texts[piece["index"]] += piece["delta"].get("content", "")
    for text in texts:
        fits(text)


def test_a_form_that_becomes_too_complex_on_the_way_is_told(client, monkeypatch):
    """It is the request that is wrong, not the server; and no half of it looks like an answer."""
    monkeypatch.setattr(
        "visualchat.serve.vocabulary.JsonAnswer.take", lambda *_: (_ for _ in ()).throw(ApiError(400, "?"))
    )
    asked(client, PATH, body(user("?"), response_format=formed(FORM)), 400)


def named(uuid, seed=None, text="What is it?"):
    url = {} if seed is None else {"image_url": {"url": as_url(picture(seed))}}
    return {"role": "user", "content": [{"type": "image_url", "uuid": uuid, **url}, {"type": "text", "text": text}]}


def test_an_image_is_shown_again_by_its_uuid_alone(serving, loud, processor):
    """The latest picture of a uuid counts, each key has its own, and a miss says what to do."""
    expected = [alone(loud, processor, user("What is it?", seed)) for seed in (1, 2)]
    with serving(Settings(keys=("first-key", "second-key"))) as client:
        client.headers["Authorization"] = "Bearer first-key"
        error = asked(client, PATH, body(named("cat")), 404)
        assert (error["code"], error["param"]) == ("unknown_image", "messages[0].content[0].uuid")
        assert "send the image" in error["message"]
        for seed, text in zip((1, 2), expected, strict=True):
            assert text_of(client, named("cat", seed)) == text
            again = asked(client, PATH, body(named("cat")))
            assert again["choices"][0]["message"]["content"] == text
            assert again["usage"]["prompt_tokens_details"]["image_tokens"] == 4
        asked(client, PATH, body({"role": "user", "content": [part("data:image/png;base64,aa", uuid="dog")]}), 400)
        asked(client, PATH, body(named("dog")), 404)  # what cannot be read is not remembered
        client.headers["Authorization"] = "Bearer second-key"
        asked(client, PATH, body(named("cat")), 404)
        twice = named("cat", 1)["content"][:1] + named("cat")["content"]
        known = text_of(client, {"role": "user", "content": twice})
        assert known == alone(loud, processor, user("What is it?", 1, 1))


def test_images_that_were_not_shown_for_longest_are_forgotten(serving):
    with serving(Settings(named_image_bytes=int(2.5 * len(as_url(picture(1)))))) as client:
        for uuid, seed in (("a", 1), ("b", 2), ("a", None), ("c", 3)):
            text_of(client, named(uuid, seed))
        asked(client, PATH, body(named("b")), 404)
        assert text_of(client, named("a")) == text_of(client, user("What is it?", 1))


def test_an_image_is_warmed_before_anyone_asks(serving, loud, processor):
    with serving() as client:
        told = asked(client, IMAGES, {"image_url": {"url": as_url(picture(1))}})
        digest = image_key(picture(1))
        size = {"width": 16, "height": 16, "tokens": 4}
        assert told == {
            **{"object": "image", "uuid": digest, "digest": digest, "number": 1},
            **{**size, "known": False, "why_not_stored": None},
        }
        assert asked(client, IMAGES, {"uuid": digest})["known"] is True
        assert asked(client, IMAGES, {"uuid": "mine", "image_url": {"url": as_url(picture(2))}})["uuid"] == "mine"
        misses = client.engine.store.stats.misses
        answer = asked(
            client, PATH, body({"role": "user", "content": [*named(digest)["content"][:1], *named("mine")["content"]]})
        )
        assert client.engine.store.stats.misses == misses == 2
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 8, "image_tokens": 8}
        assert answer["choices"][0]["message"]["content"] == alone(loud, processor, user("What is it?", 1, 2))


def test_an_image_that_cannot_be_warmed(serving, make_model, processor):
    strict = Settings(limits=Limits(images=2, pixels=100))
    with serving(strict) as client:
        large = {"image_url": {"url": as_url(picture(1))}}
        assert asked(client, IMAGES, large, 400)["code"] == "too_many_pixels"
        assert (
            asked(client, IMAGES, {"image_url": {"url": "http://127.0.0.1:1/a.png"}}, 400)["code"]
            == "invalid_image_url"
        )
        assert (
            asked(client, IMAGES, {"image_url": {"url": "data:image/png;base64,aGFsbG8="}}, 400)["code"]
            == "invalid_image"
        )
        assert asked(client, IMAGES, {"uuid": "never"}, 404)["code"] == "unknown_image"
        assert asked(client, IMAGES, {"uuid": "a", "number": 3}, 400)["param"] == "number"
        assert "expected image_url" in asked(client, IMAGES, {}, 400)["message"]
        assert asked(client, IMAGES, {"url": "a"}, 400)["param"] == "url"
    with serving(store=ImageStore(10, 10)) as client:
        assert "no room" in asked(client, IMAGES, {"image_url": {"url": as_url(picture(1))}})["why_not_stored"]
    causal = make_model(attention_kind="causal").eval()
    with serving(model=causal) as client:
        told = asked(client, IMAGES, {"image_url": {"url": as_url(picture(1))}, "uuid": "cat"})
        assert "not kept apart" in told["why_not_stored"]
        assert text_of(client, named("cat")) == text_of(client, user("What is it?", 1))  # sent once, all the same

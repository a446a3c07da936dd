"""What the server does for the page: its files and no others, a key where it asks for one, where an answer looked."""

import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from asking import MOST, PATH, picture, said, user
from starlette.testclient import TestClient

from visualchat.chat import ChatSession
from visualchat.chat.looking import look
from visualchat.dialogue import Dialogue, Turn
from visualchat.engine import Engine
from visualchat.serve.app import build_app
from visualchat.serve.local import Local
from visualchat.serve.settings import Limits, Settings
from visualchat.web.page import FILES, ShownModel, add_page
from visualchat.web.second import Several, attend_by, beside

KEY = "a-key-of-ours"


@pytest.fixture(scope="module")
def models(make_model):
    def loud():
        model = make_model(projector_type="linear_norm").eval()
        with torch.no_grad():
            model.multi_modal_projector.last_norm.weight.mul_(4)
        return model

    second = loud()
    attend_by(second, "causal")
    return {"visualchat": loud(), "second": second}


@pytest.fixture(scope="module")
def shown(models, processor):
    """Opens a client to a server with the page and two models."""

    @contextmanager
    def opened(settings=None):
        settings = settings or Settings(max_new_tokens=MOST)
        found = [ShownModel(name, Engine(model, processor)) for name, model in models.items()]
        backends = [Local(model.engine, replace(settings, name=model.name)) for model in found]
        gate = build_app(Several(backends), settings)
        add_page(gate, found, settings)
        with TestClient(gate, "http://localhost", raise_server_exceptions=False) as client:
            client.gate = gate
            yield client

    return opened


@pytest.fixture(scope="module")
def client(shown):
    with shown() as found:
        yield found


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    linked = set(re.findall(r"/page/([a-z]+\.[a-z]+)", page.text))
    assert linked <= set(FILES)
    for name in FILES:
        file = client.get(f"/page/{name}")
        assert file.headers["content-type"].startswith(FILES[name])
        assert not re.findall(r"https?:|//[a-z]+\.|@import|url\(", file.text)
        linked |= set(re.findall(r'from "\./([a-z]+\.js)"', file.text))
    assert linked == set(FILES)  # none is missing, none is left over


@pytest.mark.parametrize(
    "path",
    [
        "/page/../page.py",
        "/page/%2e%2e/page.py",
        "/page/..%2f..%2f..%2fetc%2fpasswd",
        "/page//etc/passwd",
        "/page/page.py",
        "/page/index.html",
        "/page/",
        "/page/file=/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/file=/etc/passwd",
    ],
)
def test_no_other_file_can_be_read(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert set(response.json()) == {"error"}
    assert "root:" not in response.text


def test_with_keys_the_page_opens_and_all_else_asks_for_one(shown):
    asked = {"model": "visualchat", "messages": [user("What?", 1), said("A."), user("And?")]}
    with shown(Settings(keys=(KEY,))) as client:
        for path in ("/", "/page/page.js", "/page/examples.json"):
            assert client.get(path).status_code == 200
        paths = (
            ("GET", "/v1/page"),
            ("POST", "/v1/attention"),
            ("POST", PATH),
            ("GET", "//v1/page"),
            ("GET", "/v1/models"),
        )
        for method, path in paths:
            refused = client.request(method, path, json=asked if method == "POST" else None)
            assert refused.status_code == (404 if path.startswith("//") else 401), path
        client.headers["Authorization"] = f"Bearer {KEY}"
        assert client.get("/v1/page").status_code == 200
        assert client.post("/v1/attention", json={**asked, "messages": asked["messages"][:2]}).status_code == 200


def test_what_the_page_may_offer(client):
    about = client.get("/v1/page").json()
    assert about["models"] == [
        {"name": name, "attention": kind, "layers": 2, "heads": 4, "why_not_shown": None}
        for name, kind in (("visualchat", "mmca"), ("second", "causal"))
    ]
    assert about["limits"]["images"] == 16
    assert about["max_new_tokens"] == MOST
    examples = client.get("/page/examples.json").json()
    assert len(examples) == 3
    for example in examples:
        assert all(image.startswith("data:image/png;base64,") for part in example["rounds"] for image in part["images"])
        assert example["rounds"][0]["images"]
        assert example["rounds"][-1]["images"]  # new images in a later round


def test_where_an_answer_looked_is_what_its_model_says(client, models, processor):
    messages = [user("What is it?", 1, 2), said("A dog."), user("And here?", 3), said("Cats.")]
    rounds = (
        Turn.ask("What is it?", [picture(1), picture(2)], answer="A dog."),
        Turn.ask("And here?", [picture(3)], answer="Cats."),
    )
    for name, model in models.items():
        for chosen in ({}, {"layer": 1}, {"layer": 0, "head": 3}):
            asked = {"model": name, "messages": messages, **chosen}
            found = client.post("/v1/attention", json=asked).json()
            expected = look(model, processor, Dialogue(rounds), **chosen)
            assert found["tokens"] == expected.tokens
            assert found["softmaxes"] == {"visualchat": 2, "second": 1}[name]
            weights = torch.tensor([image["weights"] for image in found["images"]], dtype=torch.double)
            torch.testing.assert_close(weights.transpose(0, 1), expected.images, atol=1e-6, rtol=0)  # rounded
            text = torch.tensor(found["text"]["weights"], dtype=torch.double)
            torch.testing.assert_close(text, expected.text, atol=1e-6, rtol=0)
            assert [(image["rows"], image["columns"]) for image in found["images"]] == [(2, 2)] * 3


def test_requests_that_cannot_be_shown_are_refused(shown):
    messages = [user("What is it?", 1), said("A dog.")]
    fine = {"model": "visualchat", "messages": messages}
    without = {"role": "user", "content": [{"type": "image_url", "uuid": "x"}, {"type": "text", "text": "?"}]}
    wrong = (
        ({"model": "third"}, 404, "this server has 'visualchat', 'second'"),
        ({"layer": 2}, 400, "layer 2: this model has 2"),
        ({"layer": "1"}, 400, "layer"),
        ({"heads": 1}, 400, "heads is not supported"),
        ({"messages": [*messages, user("And?")]}, 400, "no answer"),
        ({"messages": [user("What?", *range(5)), said("A.")]}, 400, "at most 4 are allowed"),
        ({"messages": [without, said("A.")]}, 400, "uuid alone"),
        ({"messages": [user("x" * 40_000), said("A.")]}, 413, "more than 30000 bytes"),
    )
    with shown(Settings(limits=Limits(images=4, body_bytes=30_000, tokens=256))) as client:
        for change, status, words in wrong:
            response = client.post("/v1/attention", json={**fine, **change})
            assert (response.status_code, words in response.text) == (status, True), response.text
        assert client.post("/v1/attention", json=fine).status_code == 200
        client.gate.stopping = True
        assert client.post("/v1/attention", json=fine).status_code == 503


def test_two_models_answer_the_same_dialogue_each_as_it_does_alone(client, models, processor):
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["visualchat", "second"]
    answers = {}
    for name, model in models.items():
        asked = {"model": name, "messages": [user("What is it?", 1, 2)], "max_tokens": MOST}
        answers[name] = client.post(PATH, json=asked).json()["choices"][0]["message"]["content"]
        alone = ChatSession(model, processor, max_new_tokens=MOST)
        assert answers[name] == "".join(alone.ask("What is it?", [picture(1), picture(2)]))
    assert answers["visualchat"] != answers["second"]
    refused = client.post(PATH, json={"model": "third", "messages": [user("What?")]})
    assert refused.status_code == 404
    assert "this server has 'visualchat', 'second'" in refused.text
    assert client.post("/v1/images", json={"image_url": user("", 7)["content"][0]["image_url"]}).status_code == 200


@pytest.mark.parametrize("share", [False, True])
def test_a_model_attends_by_another_kind(make_model, processor, share):
    first, expected = make_model(), make_model(attention_kind="unit")
    model = beside(first, "unit") if share else make_model()
    if share:  # it takes no memory, and the first stays what it was
        assert {tensor.data_ptr() for tensor in model.parameters()} == {t.data_ptr() for t in first.parameters()}
        assert first.config.attention_kind == "mmca"
        inputs = processor(images=[picture(1), picture(2)], text="What is in image 2?")
        with torch.inference_mode():
            logits = [each(**inputs).logits for each in (first, make_model(), model, expected)]
        assert torch.equal(logits[0], logits[1])
        assert torch.equal(logits[2], logits[3])
        assert not torch.equal(logits[0], logits[2])
    attend_by(model, "unit")
    assert model.config.attention_kind == "unit"
    assert model.language_model.config._attn_implementation == expected.language_model.config._attn_implementation
    with pytest.raises(ValueError, match="did you mean causal"):
        attend_by(model, "casual")
    with pytest.raises(ValueError, match="layers of its own"):
        attend_by(make_model(attention_kind="cross", cross_attention_every=1), "mmca")

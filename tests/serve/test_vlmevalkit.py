"""The requests of VLMEvalKit's wrapper of OpenAI's API, by the settings of docs/evaluation.md.

Its source: https://github.com/open-compass/VLMEvalKit, vlmeval/api/gpt.py, api/base.py and inference_mt.py.
"""

import io
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from asking import MOST, PATH, alone, encoded, picture
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs/evaluation.md"


@pytest.fixture(scope="module")
def settings():
    """Those of the model in the page's file."""
    _, _, behind = PAGE.read_text(encoding="utf-8").partition("## Inside VLMEvalKit")
    block = behind.partition("```json\n")[2].partition("```")[0]
    told = json.loads(block)["model"]["visualchat"]
    assert told.pop("class") == "GPT4V"
    assert told.pop("key").startswith("sk-")
    assert told.pop("img_size") == -1  # else images are scaled down before they are sent
    return told


def jpeg(image: Image.Image) -> str:
    """An image as it is sent: JPEG without transparency, sides below 100 pixels scaled up."""
    image = image.convert("RGB")
    if min(image.size) < 100:
        factor = 100 / min(image.size)
        image = image.resize((int(image.width * factor), int(image.height * factor)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return encoded(buffer.getvalue(), "jpeg")


def content(items):
    """Texts and images in their order; texts alone are joined."""
    if all(isinstance(item, str) for item in items):
        return [{"type": "text", "text": "\n".join(items)}]
    return [
        {"type": "text", "text": item}
        if isinstance(item, str)
        else {"type": "image_url", "image_url": {"url": jpeg(item), "detail": "low"}}
        for item in items
    ]


def asked(client, settings, messages):
    """The wrapper's answer: the words of the first choice without space around them."""
    assert urlsplit(settings["api_base"]).path == PATH
    payload = {"model": settings["model"], "messages": messages, "n": 1, "temperature": settings["temperature"]}
    payload["max_tokens"] = min(settings["max_tokens"], MOST)
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-none"}
    response = client.post(PATH, headers=headers, content=json.dumps(payload))
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"].strip()


def test_rounds_with_images_between_their_words(client, loud, processor, settings):
    """Later rounds bring the model's own answers; each answer is the model's to the very same conversation."""
    rounds = [["What is ", picture(1), " beside ", picture(2), "?"], ["And now?"], [picture(3, (200, 120)), "This?"]]
    messages = []
    for items in rounds:
        messages.append({"role": "user", "content": content(items)})
        said = asked(client, settings, messages)
        assert said == alone(loud, processor, *messages).strip()
        messages.append({"role": "assistant", "content": content([said])})
    assert asked(client, settings, [{"role": "user", "content": content(["hello"])}])  # whether the server works


def test_as_many_tokens_as_the_page_asks_for_are_offered(client, settings):
    body = {"model": settings["model"], "messages": [{"role": "user", "content": "hello"}]}
    assert client.post(PATH, json={**body, "max_tokens": settings["max_tokens"]}).status_code == 200
    refused = client.post(PATH, json={**body, "max_tokens": 2048})
    assert refused.status_code == 400
    assert "limits.tokens" in PAGE.read_text(encoding="utf-8")

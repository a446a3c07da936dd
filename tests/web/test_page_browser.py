"""The page as people meet it: `visualchat-web` in a process of its own, a browser, one conversation from end to end."""

import json
import re

import httpx
import pytest
import torch
from asking import as_url, picture
from browsing import browser
from commands import LIMIT, started

from visualchat.chat import ChatSession
from visualchat.chat.looking import look
from visualchat.data.sources.messages import Messages
from visualchat.dialogue import Dialogue, Turn
from visualchat.model import VisualChatProcessor
from visualchat.model.saved import load_model
from visualchat.web.second import attend_by

pytestmark = pytest.mark.web

KEY = "a-key-of-ours"
MOST = 10  # tokens of an answer
FIRST, LATER, OTHER = "What is <b>bold</b> in image 2?", "And in image 3?", "Who is in image 3?"

STOP_AT_ONCE = """
const waiting = setInterval(() => {
  if (!document.querySelector(".round:nth-child(3) .running")?.textContent) return;
  clearInterval(waiting);
  document.getElementById("stop").click();
}, 1)
"""
"""Presses Stop when the third answer begins, sooner than this process could."""


NOTE_REQUESTS = """
const send = window.fetch;
window.sent = [];
window.fetch = (path, options) => {
  if (path === "/v1/chat/completions") window.sent.push(options.body.split("data:image").length - 1);
  return send(path, options);
}
"""
"""Notes how many images each request for an answer brings along."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_model, processor):
    """A saved model whose images make a difference, and whose answers never end by themselves.

    They are made of letters that are tokens of their own wherever they stand, so that a server, which is told what was
    said as text, reads the tokens that a session remembers.
    """
    model = make_model(projector_type="linear_norm")
    with torch.no_grad():
        model.multi_modal_projector.last_norm.weight.mul_(4)
        letters = processor.tokenizer.convert_tokens_to_ids([*"bcdfhjklpvxyz"])
        head = model.get_output_embeddings().weight
        head[[token for token in range(len(head)) if token not in letters]] = 0
    path = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture
def page(folder, tmp_path):
    """The page, open at 1400 pixels, of a server that remembers three small images."""
    settings = (f"folder={folder}", f"max_new_tokens={MOST}", "port=0", "page.open=false", "limits.tokens=1800")
    settings += ("named_image_bytes=12000",)
    second = "page.second.attention=causal"
    with (
        browser(tmp_path / "browser") as found,
        started(tmp_path, "visualchat-web", *settings, second, VISUALCHAT_API_KEYS=KEY) as process,
    ):
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        address = re.search(r"^the page: (http://\S+)$", said[-1])
        assert address, f"{said}{process.communicate(timeout=LIMIT)}"
        found.width(1400)
        found.driver.get(address[1])
        yield found


def saved_image(folder, seed):
    path = folder / f"{seed}.png"
    picture(seed, (32, 24)).save(path)
    return str(path)


def send(page, words, *files):
    """Ask, and wait for the whole answer."""
    rounds, attached = len(page.all(".round")), len(page.all("#attached figure"))
    if files:
        page.all("#files")[0].send_keys("\n".join(files))
        page.until(lambda: len(page.all("#attached figure")) == attached + len(files), "all images")
    page.type("#question", words)
    page.click("#send")
    page.until(lambda: len(page.all(".round")) == rounds + 1, "a round more")
    finished(page)


def finished(page):
    page.until(lambda: page.all("#send")[0].is_displayed() and not page.all(".running"), "the end of an answer")


def answers(page, model="visualchat"):
    return page.texts(f'.answer[data-model="{model}"] > .words')


def fits(page):
    """Nothing is wider than the window."""
    script = "return document.documentElement.scrollWidth <= window.innerWidth"
    return page.driver.execute_script(script)


def test_a_conversation_from_end_to_end(page, folder, tmp_path):
    processor = VisualChatProcessor.from_pretrained(folder)
    session = ChatSession(load_model(folder), processor, max_new_tokens=MOST)
    shown = {seed: picture(seed, (32, 24)) for seed in (1, 2, 3)}
    files = {seed: saved_image(tmp_path, seed) for seed in shown}

    # the key
    page.type("#key", "another-key")
    page.click("#key-form button")
    page.until(lambda: page.texts("#key-problem") == ["This is not a key of this server."], "a refusal")
    page.type("#key", KEY)
    page.click("#key-form button")
    page.one("#examples button")
    assert fits(page)
    page.driver.execute_script(NOTE_REQUESTS)

    # two images, then a third in the next round
    expected = ["".join(session.ask(FIRST, [shown[1], shown[2]]))]
    send(page, FIRST, files[1], files[2])
    assert answers(page) == expected
    assert page.texts(".question > .words") == [FIRST]  # what is typed is text, never HTML
    assert page.texts(".question figcaption") == ["Image 1", "Image 2"]
    expected.append("".join(session.ask(LATER, [shown[3]])))
    send(page, LATER, files[3])
    assert answers(page) == expected
    figures = page.texts(".figures")[1]
    measured = r"[\d.]+ tokens/s · first after \d+ ms · \d+ of \d+ prompt tokens from the store"
    assert re.fullmatch(rf"{MOST} tokens, cut at the most · {measured}", figures)
    rate, first = map(float, re.findall(r"([\d.]+) tokens/s · first after (\d+) ms", figures)[0])
    assert (rate - 0.5) * (first - 0.5) / 1000 <= MOST  # over the whole time, which ends after the first words
    known, prompt = map(int, re.findall(r"(\d+) of (\d+)", figures)[0])
    assert 20 < known < prompt  # the first round was
    assert page.driver.execute_script("return window.sent") == [0, 0]  # they came when they were attached

    # what is no image is refused while it is attached
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    page.all("#files")[0].send_keys(str(broken))
    page.until(lambda: "cannot be read as an image" in page.texts("#problem")[0], "a refusal")
    assert not page.all("#attached figure")

    # where it looked
    turns = (
        Turn.ask(FIRST, [shown[1], shown[2]], answer=expected[0]),
        Turn.ask(LATER, [shown[3]], answer=expected[1]),
    )
    page.click(".round:last-child .look")
    for layer, head in ((None, None), (1, 2)):
        if layer is not None:
            for name, number in (("layer", layer), ("head", head)):
                page.click(f".looking .{name} option[value='{number}']")
        looked = look(session.model, processor, Dialogue(turns), layer=layer, head=head)
        shares = [f"Image {k} · {percent(share)}" for k, share in enumerate(looked.images.mean(0).sum(-1), start=1)]
        page.until(lambda shares=shares: page.texts(".looked figcaption") == shares, f"{shares}")
        assert "100 % over all of them" in page.texts(".image-heading")[0]
    page.click(".looking .tokens .token:nth-child(3)")
    shares = [f"Image {k} · {percent(share)}" for k, share in enumerate(looked.images[1].sum(-1), start=1)]
    assert page.texts(".looked figcaption") == shares
    weights = page.driver.execute_script(
        "return [...document.querySelectorAll('.read span')].map((item) => item.title)"
    )
    assert weights == [percent(weight) for weight in looked.text[1]]
    canvas = "return [...document.querySelectorAll('.looked canvas')].map((item) => [item.width, item.height])"
    assert page.driver.execute_script(canvas) == [[2 * 192, 2 * 144]] * 3
    assert fits(page)
    page.width(400)
    assert fits(page)
    page.width(1400)

    # stop, undo
    page.click("#settings")
    page.type("#max-tokens", "1700")
    page.type("#temperature", "2")  # with spaces: text comes word by word
    page.type("#question", "Tell me more.")
    page.driver.execute_script(STOP_AT_ONCE)
    page.click("#send")
    page.until(lambda: len(answers(page)) == 3 and answers(page)[2], "the beginning of an answer")
    finished(page)
    assert page.texts(".figures")[2] == "stopped"
    assert len(answers(page)[2]) < 1000
    page.type("#max-tokens", str(MOST))
    page.type("#temperature", "0")
    page.click(".undo")
    assert answers(page) == expected
    assert page.all("#question")[0].get_property("value") == "Tell me more."
    page.all("#question")[0].clear()

    # edit, regenerate
    page.click(".round:last-child .edit")
    page.type(".round:last-child .editor textarea", OTHER)
    page.click(".round:last-child .editor .main")
    expected[1] = "".join(session.edit(2, OTHER))
    page.until(lambda: answers(page) == expected, "the answer to the other question")
    finished(page)
    page.driver.execute_script("window.sent = []")
    origin = page.driver.execute_script("return location.origin")
    large = {"image_url": {"url": as_url(picture(9, (64, 64)))}}
    done = httpx.post(f"{origin}/v1/images", json=large, headers={"Authorization": f"Bearer {KEY}"}, timeout=LIMIT)
    assert done.status_code == 200
    page.click(".round:last-child .again")
    page.until(
        lambda: page.driver.execute_script("return window.sent") == [0, 3], "images that the server has forgotten"
    )
    page.until(lambda: answers(page) == expected, "the same answer, as it is greedy")
    finished(page)
    page.type("#temperature", "2")
    page.click(".round:last-child .again")
    page.until(lambda: answers(page)[1] not in ("", expected[1]), "another answer")
    finished(page)
    expected[1] = answers(page)[1]
    page.type("#temperature", "0")

    # side by side: the second model has the history that is shown
    page.click("#compare")
    send(page, "Compare them.")
    model = load_model(folder)
    attend_by(model, "causal")
    (beside,) = answers(page, "second")
    assert beside == continued(model, processor, turns, expected[1])
    assert page.texts(".round:last-child h3") == ["visualchat · attention mmca", "second · attention causal"]
    assert fits(page)

    # save, begin again, load
    before = answers(page)
    page.click("#save")
    file = page.downloads / "conversation.jsonl"
    page.until(file.is_file, "the file")
    (kept,) = Messages(root=page.downloads, files=file.name)  # training reads it
    assert [turn.answer for turn in kept.turns] == before
    assert len(kept.images) == 3
    assert json.loads(file.read_text())["others"] == {"second": [None, None, beside]}
    page.click("#new")
    page.one("#examples button")
    page.all("#load-file")[0].send_keys(str(file))
    page.until(lambda: answers(page) == before, "the conversation")
    assert answers(page, "second") == [beside]
    page.width(400)
    assert fits(page)

    entries = page.driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert entries
    assert all(name.startswith((f"{origin}/", "data:", "blob:")) for name in entries)
    asked_for = (
        "401",
        "/v1/images",
        "/v1/chat/completions - Failed to load resource: the server responded with a status of 404",
    )
    assert not [message for message in page.messages() if not any(words in message for words in asked_for)]


def percent(share):
    """As the page writes it."""
    return f"{100 * float(share):.{1 if share < 0.1 else 0}f} %"


def continued(model, processor, turns, second_answer):
    """What a model answers to the last question, whose history others wrote."""
    rounds = (turns[0], Turn.ask(OTHER, turns[1].images, answer=second_answer), Turn.ask("Compare them."))
    prompt = processor.prompt([Dialogue(rounds)])
    out = model.generate(**prompt, max_new_tokens=MOST, do_sample=False)
    return processor.tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)

"""Hugging Face's chat format: every form of an image, and every mistake by its message and item."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from PIL import Image

from visualchat.dialogue import Dialogue, Turn
from visualchat.dialogue.messages import dialogue_from_messages
from visualchat.images.decode import decode_image

PICTURE = Image.new("RGB", (3, 2), (200, 30, 40))


def encoded(picture=PICTURE):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


BASE64 = base64.b64encode(encoded()).decode()


def text(words):
    return {"type": "text", "text": words}


def user(*content):
    return {"role": "user", "content": [*content]}


def assistant(*content):
    return {"role": "assistant", "content": [*content]}


def test_rounds_with_images():
    messages = [
        user({"type": "image", "path": "cat.png"}, text("What is "), text("it?")),
        assistant(text("A "), text("cat.")),
        user(text("And "), {"type": "image", "path": "dog.png"}, text("?")),
    ]
    assert dialogue_from_messages(messages, "row 7") == Dialogue(
        (
            Turn((Path("cat.png"), "What is ", "it?"), "A cat."),
            Turn(("And ", Path("dog.png"), "?")),
        ),
        "row 7",
    )


def test_plain_strings_and_any_mapping():
    messages = [{"role": "user", "content": "Hello."}, MappingProxyType({"role": "assistant", "content": "Hello!"})]
    assert dialogue_from_messages(messages) == Dialogue((Turn(("Hello.",), "Hello!"),), "messages")


@pytest.mark.parametrize("content", ["Be brief.", [text("Be "), text("brief.")]])
def test_a_system_message(content):
    messages = [{"role": "system", "content": content}, user(text("Hello."))]
    assert dialogue_from_messages(messages) == Dialogue((Turn(("Hello.",)),), "messages", "Be brief.")


def test_without_a_system_message_the_default_stands():
    assert dialogue_from_messages([user(text("Hello."))]).system is None
    assert dialogue_from_messages([{"role": "system", "content": ""}, user(text("Hello."))]).system == ""


@pytest.mark.parametrize(
    "item",
    [
        pytest.param({"image": PICTURE}, id="PIL"),
        pytest.param({"image": encoded()}, id="bytes as image"),
        pytest.param({"bytes": encoded()}, id="bytes"),
        pytest.param({"base64": BASE64}, id="base64"),
        pytest.param({"url": f"data:image/png;base64,{BASE64}"}, id="data URL"),
        pytest.param({"url": f"data:image/png;name=a.png;base64,{BASE64}"}, id="data URL with a parameter"),
        pytest.param({"path": None, "url": None, "image": PICTURE}, id="empty columns of a data set"),
    ],
)
def test_images_in_memory(item):
    dialogue = dialogue_from_messages([user({"type": "image", **item}, text("What is it?"))])
    (image,) = dialogue.images
    assert decode_image(image).tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize("key", ["image", "path"])
@pytest.mark.parametrize("form", [str, Path])
def test_images_in_files(tmp_path, key, form):
    path = tmp_path / "my cat.png"
    PICTURE.save(path)
    dialogue = dialogue_from_messages([user({"type": "image", key: form(path)}, text("What is it?"))])
    assert dialogue.images == (path,)
    assert decode_image(dialogue.images[0]).tobytes() == PICTURE.tobytes()


EXPECTED_ITEM = (
    'expected {"type": "text", "text": ...} or {"type": "image"} with one of image, path, bytes, base64 or url, found '
)


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        pytest.param({"type": "video", "path": "a.mp4"}, f"{EXPECTED_ITEM}{{'type': 'video'", id="unknown type"),
        pytest.param({"text": "Hello."}, f"{EXPECTED_ITEM}{{'text': 'Hello.'}}", id="no type"),
        pytest.param({"type": "text"}, f"{EXPECTED_ITEM}{{'type': 'text'}}", id="text without text"),
        pytest.param(text(7), f"{EXPECTED_ITEM}{{'type': 'text', 'text': 7}}", id="text that is none"),
        pytest.param({"type": "image"}, f"{EXPECTED_ITEM}{{'type': 'image'}}", id="image without image"),
        pytest.param("Hello.", f"{EXPECTED_ITEM}'Hello.'", id="a bare string in a list"),
        pytest.param(None, f"{EXPECTED_ITEM}None", id="nothing in a list"),
        pytest.param(
            {"type": "image", "url": "https://example.org/cat.png"},
            "nothing is fetched from 'https://example.org/cat.png'; download it and give its path",
            id="remote URL",
        ),
        pytest.param(
            {"type": "image", "url": "data:text/html;base64,AAAA"},
            "expected data:image/...;base64, found 'data:text/html;base64'",
            id="data URL of no image",
        ),
        pytest.param(
            {"type": "image", "url": "data:image/svg+xml,<svg/>"},
            "expected data:image/...;base64, found 'data:image/svg+xml'",
            id="data URL without base64",
        ),
        pytest.param({"type": "image", "base64": "AAA"}, "not valid base64: ", id="cut base64"),
        pytest.param({"type": "image", "base64": "A*A="}, "not valid base64: ", id="no base64"),
        pytest.param({"type": "image", "base64": "AAAé"}, "not valid base64: ", id="beyond ASCII"),
        pytest.param({"type": "image", "url": "data:image/png;base64,!"}, "not valid base64: ", id="bad data URL"),
        pytest.param(
            {"type": "image", "path": 7},
            "cannot read an image from int, expected ",
            id="number as path",
        ),
        pytest.param(
            {"type": "image", "bytes": [7]},
            "cannot read an image from list, expected ",
            id="list",
        ),
    ],
)
def test_a_wrong_item_is_named(item, complaint):
    messages = [user(text("Hello.")), assistant(text("Hello!")), user(text("What is it?"), item)]
    with pytest.raises(ValueError, match=r"^row 7, message 3, item 2: ") as error:
        dialogue_from_messages(messages, "row 7")
    assert complaint in str(error.value)


def test_an_error_does_not_repeat_a_whole_image():
    with pytest.raises(ValueError, match="message 1, item 1") as error:
        dialogue_from_messages([user({"type": "picture", "base64": "A" * 10_000})])
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("content", [None, 7, {"type": "text", "text": "Hello."}])
def test_content_of_a_wrong_type_is_named(content):
    kind = type(content).__name__
    with pytest.raises(ValueError, match=f"^row 7, message 1: content must be a text or a list of items, found {kind}"):
        dialogue_from_messages([{"role": "user", "content": content}], "row 7")


def test_a_message_that_is_none_is_named():
    with pytest.raises(
        ValueError, match=r"^row 7, message 2: expected a mapping with role and content, found 'Hello.'"
    ):
        dialogue_from_messages([user(text("a")), "Hello."], "row 7")


def message(role) -> Mapping:
    return {"role": role, "content": "words"}


@pytest.mark.parametrize(
    ("roles", "complaint"),
    [
        (["assistant"], "message 1: expected role 'user', found 'assistant'"),
        (["user", "assistant", "assistant"], "message 3: expected role 'user', found 'assistant'"),
        (["user", "system"], "message 2: expected role 'assistant', found 'system'"),
        (["user", "assistant", "system"], "message 3: expected role 'user', found 'system'"),
        (["system", "system"], "message 2: expected role 'user', found 'system'"),
        (["system", "assistant"], "message 2: expected role 'user', found 'assistant'"),
        (["tool"], "message 1: expected role 'user', found 'tool'"),
        ([None], "message 1: expected role 'user', found None"),
    ],
)
def test_a_role_out_of_turn_is_named(roles, complaint):
    with pytest.raises(ValueError, match=f"^row 7, {complaint}$"):
        dialogue_from_messages([message(role) for role in roles], "row 7")


@pytest.mark.parametrize("roles", [["system"], ["user", "assistant"]])
def test_only_users_send_images(roles):
    messages = [*map(message, roles[:-1]), {"role": roles[-1], "content": [text("a"), {"type": "image", "path": "b"}]}]
    with pytest.raises(ValueError, match=f"^row 7, message {len(roles)}: only user messages may hold images$"):
        dialogue_from_messages(messages, "row 7")


@pytest.mark.parametrize("messages", [[], [message("system")]])
def test_messages_without_a_question_are_refused(messages):
    with pytest.raises(ValueError, match=r"^row 7: a dialogue needs at least one turn, found none$"):
        dialogue_from_messages(messages, "row 7")


def test_an_image_alone_is_a_question():
    dialogue = dialogue_from_messages([user({"type": "image", "path": "cat.png"})])
    assert dialogue.turns == (Turn((Path("cat.png"),)),)


def test_user_messages_in_a_row_are_one_question():
    image = {"type": "image", "path": "cat.png"}
    dialogue = dialogue_from_messages([user(image), user(text("What?")), user(text("And where?"), image)])
    assert dialogue.turns == (Turn((Path("cat.png"), "What?", "\n", "And where?", Path("cat.png"))),)


@pytest.mark.parametrize("url", ["cat.png", {"url": "cat.png", "detail": "low"}])
def test_openais_form_of_an_image(url):
    dialogue = dialogue_from_messages([user(text("What?"), {"type": "image_url", "image_url": url})])
    assert dialogue.images == (Path("cat.png"),)

"""What people call a processor by: every form of a picture, the same tokens by every way, no keyword dropped."""

import base64
import copy
import io
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from test_templates import CHATML

from visualchat.model import VisualChatProcessor

RED, BLUE = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))


def message(role, *content):
    parts = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "image": c} for c in content]
    return {"role": role, "content": parts}


CONVERSATIONS = {
    "one image": [message("user", RED, "What is it?")],
    "images between words": [message("user", "This ", RED, " or that ", BLUE, "?")],
    "words, then an image": [message("user", "Look:\n", RED)],
    "an image alone": [message("user", RED)],
    "no image": [message("user", "Hello?\n\nAre you there?")],
    "rounds": [
        message("user", RED, BLUE, "Which?"),
        message("assistant", "The first."),
        message("user", "And\n", RED, "here?"),
    ],
    "answered": [
        message("user", "Hi."),
        message("assistant", "Hello."),
        message("user", BLUE, "?"),
        message("assistant", "!"),
    ],
    "own system text": [message("system", "Be brief.\n\nAlways."), message("user", RED, "What?")],
    "no system text": [message("system", ""), message("user", "What?")],
    "questions in a row": [message("user", RED), message("user", "What is it?")],
}


@pytest.fixture(scope="module", params=["paper", "special", "label_behind", "chat"])
def any_processor(request, processor, tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = CHATML
    return VisualChatProcessor(processor.image_processor, own, 4, template=request.param)


def pictures(conversation):
    return [part["image"] for m in conversation for part in m["content"] if part["type"] == "image"]


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_two_steps_give_the_tokens_of_one(any_processor, name):
    conversation = CONVERSATIONS[name]
    text = any_processor.apply_chat_template(conversation, tokenize=False)
    assert text.count("<image>") == len(pictures(conversation))
    found = any_processor(text=[str(text)], images=pictures(conversation) or None, videos=[], audios=[], padding=True)
    same(found, any_processor.apply_chat_template(conversation, tokenize=True))


def test_two_steps_of_a_batch_with_one_list_of_images(any_processor):
    several = [*CONVERSATIONS.values()]
    texts = any_processor.apply_chat_template(several, tokenize=False)
    expected = any_processor.apply_chat_template(several)
    same(any_processor(text=texts, images=[p for c in several for p in pictures(c)]), expected)
    same(any_processor(text=texts, images=[pictures(c) for c in several]), expected)


def test_an_unfinished_answer_is_continued(any_processor):
    conversation = [message("user", RED, "Which colour?"), message("assistant", "It is r")]
    whole = any_processor.apply_chat_template([*conversation[:1], message("assistant", "It is red")])["input_ids"][0]
    settings = {"continue_final_message": True, "add_generation_prompt": False}
    begun = any_processor.apply_chat_template(conversation, **settings)
    ids = begun["input_ids"][0]
    assert torch.equal(ids, whole[: len(ids)])
    assert len(ids) < len(whole)
    text = any_processor.apply_chat_template(conversation, tokenize=False, **settings)
    assert text.endswith("It is r")
    same(any_processor(text=text, images=[RED]), begun)


@pytest.mark.parametrize("words", ["What is <image>?", "a\n\n### Answer:\nb", "### Image 1:\n<image>"])
def test_words_that_spell_the_template_stay_words_or_are_refused(processor, words):
    conversation = [message("user", RED, words)]
    assert processor.apply_chat_template(conversation)["mm_token_type_ids"].sum() == 4
    with pytest.raises(ValueError, match="as one text it would be read differently"):
        processor.apply_chat_template(conversation, tokenize=False)


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def forms(folder):
    """The red picture in every form."""
    path = folder / "red.png"
    path.write_bytes(png(RED))
    pixels = np.asarray(RED)
    encoded = base64.b64encode(png(RED)).decode()
    return {
        "path": path,
        "path as text": str(path),
        "file address": path.as_uri(),
        "data URI": f"data:image/png;base64,{encoded}",
        "base64": encoded,
        "bytes": png(RED),
        "array": pixels,
        "array, channels first": pixels.transpose(2, 0, 1),
        "fractions": pixels / 255.0,
        "tensor": torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        "tensor of fractions": torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255,
    }


def test_every_form_of_a_picture_is_the_picture(processor, tmp_path):
    one = processor(images=RED, text="What?")
    two = processor(images=[RED, BLUE], text="What?")
    for form in forms(tmp_path).values():
        same(processor(images=form, text="What?"), one)
        same(processor(images=[form, BLUE], text="What?"), two)
        for part in ({"type": "image", "image": form}, {"type": "image", "url": form}):
            content = [part, {"type": "text", "text": "What?"}]
            same(processor.apply_chat_template([{"role": "user", "content": content}]), one)
        if isinstance(form, str):
            content = [{"type": "image_url", "image_url": {"url": form}}, {"type": "text", "text": "What?"}]
            same(processor.apply_chat_template([{"role": "user", "content": content}]), one)
    same(processor(images=np.stack([np.asarray(RED), np.asarray(BLUE)]), text="What?"), two)
    assert torch.equal(processor(images=[RED, BLUE])["pixel_values"], two["pixel_values"])


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ("https://example.org/a.png", "nothing is fetched from"),
        ("nowhere.png", "does not exist or is not a file"),
        (np.zeros((5, 4, 7)), "1, 3 or 4 channels, found shape"),
        (np.full((4, 4, 3), 3.0), "fractions from 0 to 1, found float64 from 3 to 3"),
        (np.full((4, 4), 300), "whole numbers from 0 to 255, found int64 from 300"),
        (torch.full((3, 4, 4), float("nan")), "fractions from 0 to 1"),
    ],
)
def test_what_is_no_picture_is_refused(processor, image, found):
    with pytest.raises(ValueError, match=found):
        processor(images=image, text="What?")


def test_images_go_where_a_text_says(processor):
    conversation = [message("user", "This ", RED, " or ", BLUE, "?")]
    expected = processor.apply_chat_template(conversation)
    same(processor(images=[RED, BLUE], text="This <image> or <image>?"), expected)
    for texts, images, found in (
        ("<image> <image>", [RED], "2 <image> in the text, 1 images are given"),
        ("<image>", None, "1 <image> in the text, 0 images are given"),
        (["a", "b"], [RED], "2 texts say <image> 0 times and 1 images are given"),
        (["a", "b"], [[RED]], "1 lists of images are given for 2 texts"),
        ("x\n\n### Answer:\n", None, "is not a prompt of this template"),
    ):
        with pytest.raises(ValueError, match=found):
            processor(images=images, text=texts)


TEXTS = ["Hello there, this one is longer?", "Hi?"]


def test_options_are_honoured(processor):
    plain = processor(text=TEXTS)
    assert plain["attention_mask"][1, 0] == 0
    right = processor(text=TEXTS, text_kwargs={"padding_side": "right"})
    assert right["attention_mask"][1].tolist() == plain["attention_mask"][1].flip(0).tolist()
    arrays = processor(text=TEXTS, images=[[RED], []], return_tensors="np")
    assert all(isinstance(column, np.ndarray) for column in arrays.values())
    lists = processor(text=TEXTS, return_tensors=None, padding=False)
    rows = zip(plain["input_ids"], plain["attention_mask"].bool(), strict=True)
    assert lists["input_ids"] == [row[mask].tolist() for row, mask in rows]
    length = plain["input_ids"].shape[1] + 5
    filled = processor(text=TEXTS, padding="max_length", max_length=length)
    assert filled["input_ids"].shape == filled["mm_token_type_ids"].shape == (2, length)
    assert torch.equal(filled["attention_mask"].sum(1), plain["attention_mask"].sum(1))
    bare = processor(text="Hi?", add_special_tokens=False)["input_ids"][0]
    assert torch.equal(bare, processor(text="Hi?")["input_ids"][0, 1:])
    as_is = {"do_rescale": False, "do_normalize": False}
    raw = processor(images=RED, text="?", **as_is)["pixel_values"]
    assert raw.max() == 255
    assert torch.equal(processor(images=RED, text="?", images_kwargs=as_is)["pixel_values"], raw)
    answered = processor.apply_chat_template(CONVERSATIONS["answered"], return_assistant_tokens_mask=True)
    said = answered["input_ids"][answered["assistant_masks"].bool()]
    assert processor.decode(said) == "Hello.</s>!</s>"


REFUSED = {
    "chat_template": "{{ messages }}",
    "tools": [{"name": "f"}],
    "documents": [{"text": "f"}],
    "truncation": True,
    "videos": [np.zeros((2, 4, 4, 3))],
    "audio": [np.zeros(4)],
    "max_length": 3,
    "return_tensors": "tf",
    "padding": "some",
    "padding_side": "top",
    "return_attention_mask": False,
}


@pytest.mark.parametrize(("name", "two_step"), product(REFUSED, (False, True)))
def test_what_cannot_be_honoured_is_refused(processor, name, two_step):
    call, first = (processor, TEXTS[0]) if two_step else (processor.apply_chat_template, [message("user", TEXTS[0])])
    given = {"text": first} if two_step else {"conversation": first}
    with pytest.raises(ValueError, match=name):
        call(**given, **{name: REFUSED[name]})


def test_unknown_keywords_and_roles_that_do_not_fit_are_refused(processor):
    ask = [message("user", "What?")]
    with pytest.raises(TypeError, match=r"unexpected keyword arguments: enable_thinking"):
        processor.apply_chat_template(ask, enable_thinking=True)
    with pytest.raises(TypeError, match=r"unexpected keyword arguments: sizes"):
        processor(text="What?", sizes=3)
    with pytest.raises(ValueError, match="continue_final_message needs an assistant's message"):
        processor.apply_chat_template(ask, continue_final_message=True)
    with pytest.raises(ValueError, match="is to be answered, add_generation_prompt=False cannot"):
        processor.apply_chat_template(ask, add_generation_prompt=False)
    with pytest.raises(ValueError, match=r"rows of .* tokens make no tensor"):
        processor(text=TEXTS, padding=False)
    with pytest.raises(ValueError, match="only user messages may hold images"):
        processor.apply_chat_template([*ask, message("assistant", RED)])


def test_settings_of_generate_are_named_as_idle(processor, caplog):
    processor(text="What?", do_sample=False)
    assert "['do_sample'] belong to generate and do nothing here; a pipeline takes generate_kwargs" in caplog.text

"""Hostile rows, corpora and texts."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_cases import LIMIT, RED, Case, answer, blocks, encoded, image, lines, talk, user
from PIL import Image

from visualchat.data.batching.collate import encode_example
from visualchat.data.sources import Llava, Messages, MimicIt, Source, Sparkles
from visualchat.dialogue import Dialogue

DEEP = '{"messages": ' + "[" * 100_000


def without_file(folder: Path) -> Source:
    return Messages(folder, ["gone.jsonl"], on_error="skip")


def wrong_ending(folder: Path) -> Source:
    (folder / "rows.txt").write_text("{}")
    return Messages(folder, ["rows.txt"], on_error="skip")


GOOD = {"messages": [user("Well?"), answer()]}


def both_train(dialogue: Dialogue, processor: Any, pictures: list[Image.Image]) -> None:
    assert dialogue.id == "rows.jsonl:7"


ROWS = (
    Case("file that does not exist", "named", "unreadable file", without_file, "gone"),
    Case(
        "file of an unknown kind",
        "named with the kinds that are read",
        "unreadable file",
        wrong_ending,
        r"expected a name that ends in \.jsonl",
    ),
    Case("broken JSON in a line", "that line alone is bad", "bad row", lines('{"messages": [', GOOD), "broken JSON"),
    Case("JSON nested 100,000 deep", "that line alone is bad", "bad row", lines(DEEP), "broken JSON"),
    Case("a list in place of a row", "named", "bad row", lines([1, 2]), "wrong form"),
    Case("row without messages", "named with what it holds", "bad row", lines({"text": "hi"}), "found text"),
    Case("no message at all", "no answer to train on", "bad row", lines({"messages": []}), "no answer"),
    Case(
        "unknown role",
        "named with the expected one",
        "bad row",
        talk({"role": "cat", "content": "?"}, answer()),
        "expected role 'user', found 'cat'",
    ),
    Case(
        "two questions in a row",
        "named with the expected role",
        "bad row",
        talk(user("One?"), user("Two?"), answer()),
        "expected role 'assistant', found 'user'",
    ),
    Case(
        "odd number of messages: the last question is open",
        "no answer to train on",
        "bad row",
        talk(user("One?"), answer(), user("Two?")),
        "no answer",
    ),
    Case("empty answer", "named", "bad row", talk(user("One?"), answer("")), "empty answer"),
    Case("answer of spaces", "named", "bad row", talk(user("One?"), answer(" \n")), "empty answer"),
    Case("image without a question", "named", "bad row", talk(user(image("red.png")), answer()), "empty question"),
    Case("content that is a number", "named", "bad row", talk({"role": "user", "content": 7}, answer()), "wrong form"),
    Case("content that is null", "named", "bad row", talk({"role": "user", "content": None}, answer()), "wrong form"),
    Case(
        "unknown kind of content (video)",
        "named with the kinds that are read",
        "bad row",
        talk(user({"type": "video", "path": "a.mp4"}, "What?"), answer()),
        "wrong form",
    ),
    Case(
        "image in an answer",
        "only questions may hold images",
        "bad row",
        talk(user("Draw!"), answer([image("red.png")])),
        "only user messages may hold images",
    ),
    Case(
        "image in the system message",
        "only questions may hold images",
        "bad row",
        talk({"role": "system", "content": [image("red.png")]}, user("One?"), answer()),
        "wrong form",
    ),
    Case(
        "more placeholders than images",
        "named with both numbers",
        "bad row",
        talk({"role": "user", "content": "<image><image> Same?"}, answer(), images=["red.png"]),
        "placeholders and",
    ),
    Case(
        "fewer placeholders than images",
        "named with both numbers",
        "bad row",
        talk({"role": "user", "content": "<image> Same?"}, answer(), images=["red.png"] * 2),
        "placeholders and",
    ),
    Case("text with half of a surrogate pair", "is not text", "bad row", talk(user("\ud800?"), answer()), "wrong form"),
    Case(
        "two rows of one id",
        "both train; the report counts them",
        "trains",
        lines({**GOOD, "id": 7}, {**GOOD, "id": 7}),
        verify=both_train,
    ),
)


def llava(row: Any) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        (folder / "coco" / "train2017").mkdir(parents=True)
        Image.new("RGB", (8, 8), RED).save(folder / "coco" / "train2017" / "000000000001.jpg")
        (folder / "rows.json").write_text(json.dumps([row]))
        return Llava(folder, files=["rows.json"], on_error="skip")

    return make


def llava_row(**changes: Any) -> dict[str, Any]:
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It is red."}]
    return {"id": "1", "image": "000000000001.jpg", "conversations": said, **changes}


def mimic(images: str | dict[str, Any], rows: str | dict[str, Any]) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        home = folder / "MIMIC-IT"
        home.mkdir()
        (home / "SD.json").write_text(images if isinstance(images, str) else json.dumps(images))
        text = rows if isinstance(rows, str) else json.dumps({"meta": {}, "data": rows})
        (home / "SD_instructions.json").write_text(text)
        return MimicIt(folder, "SD", on_error="skip")

    return make


def mimic_row(*ids: str) -> dict[str, Any]:
    return {"instruction": "Differences?", "answer": "None.", "image_ids": list(ids), "rel_ins_ids": []}


FRAME = base64.b64encode(encoded(blocks(RED))).decode()
ONE = {"SD_INS_00001": mimic_row("SD_IMG_00001_1")}


def sparkles(images: int, tags: int) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        for part in ("SparklesDialogueCC", "SparklesDialogueVG"):
            (folder / part / "annotations").mkdir(parents=True)
            (folder / part / "images").mkdir()
            (folder / part / "annotations" / f"{part}.json").write_text("[]")
        part = folder / "SparklesDialogueCC"
        for n in range(1, 4):
            Image.new("RGB", (8, 8), RED).save(part / "images" / f"{n}.jpg")
        question = "Compare " + " ".join(f"IMAGE#{n + 1}<Img><ImageHere></Img>" for n in range(tags)) + "!"
        shown = [{"image_id": n + 1, "caption": "red"} for n in range(images)]
        said = [
            {"role": "user", "images": shown, "content": question},
            {"role": "assistant", "content": "Both are red."},
            {"role": "user", "images": [], "content": "Sure?"},
            {"role": "assistant", "content": "Yes."},
        ]
        (part / "annotations" / "SparklesDialogueCC.json").write_text(json.dumps([{"dialogue": said}]))
        return Sparkles(folder, on_error="skip")

    return make


def one_image(dialogue: Dialogue, processor: Any, pictures: list[Image.Image]) -> None:
    assert len(pictures) == 1


CORPORA = (
    Case(
        "LLaVA: `image` is a text, not a list",
        "one image, not one per letter",
        "trains",
        llava(llava_row()),
        verify=one_image,
    ),
    Case(
        "LLaVA: unknown speaker",
        "named",
        "bad row",
        llava(llava_row(conversations=[{"from": "cat", "value": "?"}, {"from": "gpt", "value": "!"}])),
        "role",
    ),
    Case("LLaVA: no `conversations`", "named", "bad row", llava(llava_row(conversations=None)), "wrong form"),
    Case(
        "MIMIC-IT: unknown image id",
        "the row alone is bad",
        "bad row",
        mimic({"SD_IMG_00002_1": FRAME}, ONE),
        "unknown image id",
    ),
    Case(
        "MIMIC-IT: image of broken base64",
        "named with its id",
        "bad row",
        mimic({"SD_IMG_00001_1": "@@@@"}, ONE),
        "SD_IMG_00001_1",
    ),
    Case(
        "MIMIC-IT: base64 that is not an image",
        "named",
        "bad row",
        mimic({"SD_IMG_00001_1": base64.b64encode(b"hello").decode()}, ONE),
        "cannot identify image file",
    ),
    Case(
        "MIMIC-IT: image file cut short",
        "named: is the download complete?",
        "unreadable file",
        mimic('{"SD_IMG_00001_1": "' + FRAME[:50], ONE),
        r"SD\.json",
    ),
    Case(
        "MIMIC-IT: instructions cut short",
        "named with line and column",
        "unreadable file",
        mimic({"SD_IMG_00001_1": FRAME}, '{"data": {"SD_INS_00001": {'),
        "is the download complete",
    ),
    Case(
        "MIMIC-IT: one instruction id twice",
        "the first counts, the second is bad",
        "bad row",
        mimic(
            {"SD_IMG_00001_1": FRAME},
            '{"data": {"A": '
            + json.dumps(mimic_row("SD_IMG_00001_1"))
            + ', "A": '
            + json.dumps(mimic_row("SD_IMG_00001_1"))
            + "}}",
        ),
        "duplicate id",
    ),
    Case(
        "MIMIC-IT: related id that does not exist",
        "the row trains; the report counts it",
        "trains",
        mimic({"SD_IMG_00001_1": FRAME}, {"A": {**mimic_row("SD_IMG_00001_1"), "rel_ins_ids": ["gone"]}}),
        verify=one_image,
    ),
    Case(
        "SparklesDialogue: more tags than images",
        "named with both numbers",
        "bad row",
        sparkles(1, 2),
        "SparklesDialogueCC",
    ),
    Case(
        "SparklesDialogue: fewer tags than images",
        "named with both numbers",
        "bad row",
        sparkles(3, 2),
        "SparklesDialogueCC",
    ),
)


def no_slot(dialogue: Dialogue, processor: Any, pictures: list[Image.Image]) -> None:
    assert not pictures
    assert not any(processor.encode(dialogue).mm_token_type_ids)


def one_slot(dialogue: Dialogue, processor: Any, pictures: list[Image.Image]) -> None:
    assert sum(processor.encode(dialogue).mm_token_type_ids) == processor.image_seq_length * len(pictures) > 0


def plain(dialogue: Dialogue, processor: Any, pictures: list[Image.Image]) -> None:
    """No special token but the opening one and the answer's end."""
    ids = processor.encode(dialogue).input_ids
    tokenizer = processor.tokenizer
    assert [n for n, token in enumerate(ids) if token in tokenizer.all_special_ids] == [0, len(ids) - 1]


def kept_whole(dialogue: Dialogue, processor: Any, pictures: list[Image.Image]) -> None:
    encoding = processor.encode(dialogue)
    start, stop = encoding.answer_spans[0]
    assert processor.tokenizer.decode(encoding.input_ids[start : stop - 1]) == dialogue.turns[0].answer
    assert encoding.labels[start:stop] == encoding.input_ids[start:stop]


def many_images(dialogue: Dialogue, processor: Any, pictures: list[Image.Image]) -> None:
    assert len(pictures) == 20
    assert sum(processor.encode(dialogue).mm_token_type_ids) == 20 * processor.image_seq_length


def cut_to_one(dialogue: Dialogue, processor: Any, pictures: list[Image.Image]) -> None:
    example = encode_example(dialogue, processor, LIMIT)
    assert len(example.dialogue.turns) == 1
    assert example.trimmed is not None
    assert (example.trimmed.turns, example.trimmed.images) == (1, 1)
    assert len(example.encoding) <= LIMIT


TEXTS = (
    Case(
        "`<image>` typed in a question without images",
        "plain text, no slot opens",
        "trains",
        talk(user("What does <image> mean?"), answer()),
        verify=no_slot,
    ),
    Case(
        "`### Image 1:` typed in a question",
        "plain text, no slot opens",
        "trains",
        talk(user("### Image 1:\nWhat?"), answer()),
        verify=no_slot,
    ),
    Case(
        "`<image>` typed beside a real image's item",
        "one slot, for the image",
        "trains",
        talk(user(image("red.png"), "What does <image> mean?"), answer()),
        verify=one_slot,
    ),
    Case(
        "special tokens typed in question and answer",
        "plain text, tokenised as such",
        "trains",
        talk(user("</s><s><pad> What?"), answer("</s> nothing")),
        verify=plain,
    ),
    Case(
        "headings of the prompt typed in an answer",
        "part of the answer, all of it supervised",
        "trains",
        talk(user("Say it!"), answer("### Question:\nMe?\n\n### Answer:\nYou.")),
        verify=kept_whole,
    ),
    Case(
        "zero bytes, emoji and text from right to left",
        "kept unchanged",
        "trains",
        talk(user("What?"), answer("a\0b 🦆 \u202e\u05e9\u05dc\u05d5\u05dd")),
        verify=kept_whole,
    ),
    Case(
        "twenty images in one question",
        "twenty slots in order",
        "trains",
        talk(user(*[image("red.png")] * 20, "Same?"), answer()),
        verify=many_images,
    ),
    Case(
        "dialogue over the length limit",
        "cut at a turn's border with the images of the cut turns, and counted",
        "trains",
        talk(user("One?"), answer(), user(image("red.png"), "Two? " * 200), answer()),
        verify=cut_to_one,
    ),
    Case(
        "first turn alone over the length limit",
        "named with its length",
        "bad row",
        talk(user("Long? " * 300), answer()),
        "the first turn alone has",
    ),
)

"""COCO captions, MiniGPT-4, A-OKVQA and OCR-VQA in their files' own form."""

import json

import pytest
from corpora import IMAGE

from visualchat.data.sources import AOkVqa, CocoCaption, MiniGpt4, OcrVqa
from visualchat.data.sources.captions import LONG_REQUESTS, REASON_REQUESTS, SHORT_REQUESTS
from visualchat.data.sources.rows import Report

OPENING = ["S\n\n### Image 1:\n", IMAGE, "\n\n### Question:\n"]


def coco_row(name, *captions, split="train"):
    return {
        "filepath": "val2014",
        "filename": name,
        "cocoid": 1,
        "split": split,
        "sentids": [],
        "sentences": [{"raw": text, "tokens": text.split()} for text in captions],
    }


def test_coco_captions(corpus, expect):
    corpus.jpeg("coco/2014/COCO_val2014_1.jpg", 60)
    rows = [
        coco_row("COCO_val2014_1.jpg", " A man on a bike. ", split="restval"),
        coco_row("COCO_val2014_1.jpg", "x", split="test"),
        coco_row("COCO_val2014_2.jpg", "x"),
        coco_row("COCO_val2014_1.jpg"),
        coco_row("COCO_val2014_1.jpg", " "),
    ]
    corpus.write("coco_caption/dataset.json", {"images": rows, "dataset": "coco"})
    source = CocoCaption(corpus.root, on_error="skip")
    asked = source[0].turns[0].question
    assert asked in SHORT_REQUESTS
    expect(source[0], [*OPENING, asked, "\n\n### Answer:\n", ("A man on a bike.",)], [60])
    rejected = {"empty answer": 1, "missing image file": 1, "no answer": 1}
    assert source.report() == Report("coco_caption", 5, 1, 1, {"another split": 1}, rejected)


def test_captions_and_requests_are_drawn_by_row_and_seed(corpus):
    corpus.write("coco/2014/x.jpg", "")
    rows = [coco_row("x.jpg", *"abcde") for _ in range(60)]
    corpus.write("coco_caption/dataset.json", {"images": rows})

    def drawn(seed):
        return [(d.turns[0].question, d.turns[0].answer) for d in CocoCaption(corpus.root, seed=seed)]

    assert {question for question, _ in drawn(0)} == set(SHORT_REQUESTS)
    assert {answer for _, answer in drawn(0)} == set("abcde")
    assert drawn(0) == drawn(0) != drawn(1)


def test_minigpt4(corpus, expect):
    corpus.jpeg("cc_sbu_align/image/2.jpg", 70)
    rows = [{"image_id": "2", "caption": "The image shows a bench."}, {"image_id": "../2", "caption": "x"}, 5]
    corpus.write("cc_sbu_align/filter_cap.json", {"annotations": rows})
    source = MiniGpt4(corpus.root, on_error="skip")
    asked = source[0].turns[0].question
    assert asked in LONG_REQUESTS
    expect(source[0], [*OPENING, asked, "\n\n### Answer:\n", ("The image shows a bench.",)], [70])
    rejected = {"path outside the data root": 1, "wrong form": 1}
    assert source.report() == Report("minigpt4", 3, 1, 1, rejected=rejected)
    corpus.write("cc_sbu_align/filter_cap.json", rows)
    with pytest.raises(ValueError, match=r"filter_cap.json: expected an object with a list of rows in 'annotations'"):
        len(MiniGpt4(corpus.root))


def aokvqa_row(**fields):
    return {
        "split": "train",
        "image_id": 299207,
        "question_id": "22MexNkBPpdZGX6sxbxVBH",
        "question": "What is the man by the bags awaiting?",
        "choices": ["skateboarder", "train", "delivery", "cab"],
        "correct_choice_idx": 3,
        "difficult_direct_answer": False,
        "direct_answers": ["ride"],
        "rationales": ["A train would not be on the street", "he has luggage.", " "],
        **fields,
    }


def test_aokvqa(corpus, expect):
    corpus.jpeg("coco/train2017/000000299207.jpg", 80)
    bad = [
        aokvqa_row(correct_choice_idx=4),
        aokvqa_row(correct_choice_idx=True),
        aokvqa_row(choices=["", "", "", ""]),
        aokvqa_row(rationales=[3]),
        aokvqa_row(image_id="299207"),
        aokvqa_row(question=""),
    ]
    corpus.write("aokvqa/annotations/aokvqa_v1p0_train.json", [aokvqa_row(), *bad])
    source = AOkVqa(corpus.root, on_error="skip")
    asked = source[0].turns[0].question
    assert asked.removeprefix("What is the man by the bags awaiting? ") in REASON_REQUESTS
    answer = "Cab. A train would not be on the street. He has luggage."
    expect(source[0], [*OPENING, asked, "\n\n### Answer:\n", (answer,)], [80])
    assert source.report().rejected == {
        "empty answer": 1,
        "empty question": 1,
        "no answer": 2,
        "unknown image id": 1,
        "wrong form": 1,
    }


def cover(**fields):
    return {
        "imageURL": "http://ecx.images-amazon.com/images/I/61Y5cOdHJbL.jpg",
        "questions": ["Who wrote this book?", "What is the title?", "Is it a novel?"],
        "answers": ["Sandra Boynton", "Mom's Calendar", "No"],
        "title": "Mom's Calendar",
        "authorName": "Sandra Boynton",
        "genre": "Calendars",
        "split": 1,
        **fields,
    }


def test_ocr_vqa(corpus, expect):
    corpus.jpeg("OCR_VQA/images/761183272.jpg", 90)
    rows = {
        "761183272": cover(),
        "2": cover(split=3),
        "3": cover(imageURL="http://x/y.gif?size=1"),
        "4": cover(answers=["x"]),
        "5": cover(questions=[], answers=[]),
        "6": cover(questions=["a", 2, "c"]),
        "../../7": cover(),
    }
    corpus.write("OCR_VQA/dataset.json", rows)
    source = OcrVqa(corpus.root, on_error="skip")
    expect(
        source[0],
        [
            *(*OPENING, "Who wrote this book?\n\n### Answer:\n", ("Sandra Boynton",)),
            *("### Question:\nWhat is the title?\n\n### Answer:\n", ("Mom's Calendar",)),
            *("### Question:\nIs it a novel?\n\n### Answer:\n", ("No",)),
        ],
        [90],
    )
    rejected = {"missing image file": 1, "no answer": 2, "path outside the data root": 1, "wrong form": 1}
    assert source.report() == Report("ocr_vqa", 7, 1, 1, {"another split": 1}, rejected)
    corpus.jpeg("OCR_VQA/images/3.gif", 10)
    short = OcrVqa(corpus.root, on_error="skip", max_rounds=1)
    assert [len(dialogue.turns) for dialogue in short] == [1, 1]


def test_covers_with_one_id_are_both_read(corpus):
    corpus.jpeg("OCR_VQA/images/1.jpg", 90)
    one = json.dumps(cover())
    corpus.write("OCR_VQA/dataset.json", f'{{"1": {one}, "1": {one}}}')
    source = OcrVqa(corpus.root)
    assert [entry.id for entry in source.entries] == ["OCR_VQA/dataset.json:1", "OCR_VQA/dataset.json:1#2"]

"""SparklesDialogue: names for images, on whole words, in one style a dialogue, wherever the images stand."""

import pytest
from corpora import IMAGE

from visualchat.data.sources import Sparkles
from visualchat.data.sources.rows import Report
from visualchat.data.sources.sparkles import STYLES, image_name, rename

TAG = "<Img><ImageHere></Img>"


def turn(role, content, *ids):
    images = [{"image_id": id, "caption": f"caption of {id}"} for id in ids]
    return {"role": role, "content": content, **({"images": images} if images else {})}


ROW = {
    "dialogue": [
        turn("user", f"Compare IMAGE#14{TAG} with the bus in IMAGE#1417{TAG}, please.", 14, "1417"),
        turn("assistant", "IMAGE#14 shows a cat. IMAGE#1417 shows (IMAGE#14's) bus."),
        turn("user", f"IMAGE#3{TAG} is new. Does it fit IMAGE#1417?", 3),
        turn("assistant", "Yes, IMAGE#3 fits IMAGE#1417."),
    ]
}


@pytest.fixture
def sparkles(corpus):
    for id, shade in ((14, 20), (1417, 120), (3, 220)):
        corpus.jpeg(f"SparklesDialogueCC/images/{id}.jpg", shade)

    def make(*rows, **options):
        corpus.write("SparklesDialogueCC/annotations/SparklesDialogueCC.json", list(rows))
        return Sparkles(corpus.root, parts=["SparklesDialogueCC"], **{"style": "ordinal", **options})

    return make


def test_images_first(sparkles, expect):
    expect(
        sparkles(ROW)[0],
        [
            *("S\n\n### Image 1:\n", IMAGE, "\n### Image 2:\n", IMAGE, "\n\n### Question:\n"),
            "Compare the first image with the bus in the second image, please.\n\n### Answer:\n",
            ("The first image shows a cat. The second image shows (the first image's) bus.",),
            *("### Image 3:\n", IMAGE, "\n\n### Question:\nThe third image is new. Does it fit the second image?"),
            *("\n\n### Answer:\n", ("Yes, the third image fits the second image.",)),
        ],
        [20, 120, 220],
    )


def test_images_at_their_names(sparkles, expect):
    expect(
        sparkles(ROW, images_first=False, style="capital letter")[0],
        [
            *(
                "S\n\n### Question:\nCompare image A\n### Image 1:\n",
                IMAGE,
                "\n with the bus in image B\n### Image 2:\n",
            ),
            *(IMAGE, "\n, please.\n\n### Answer:\n", ("Image A shows a cat. Image B shows (image A's) bus.",)),
            *("### Question:\nImage C\n### Image 3:\n", IMAGE, "\n is new. Does it fit image B?\n\n### Answer:\n"),
            ("Yes, image C fits image B.",),
        ],
        [20, 120, 220],
    )


def test_both_parts_are_read_and_the_sums_add_up(corpus):
    for part, id in (("CC", 804), ("VG", "2414970")):
        corpus.jpeg(f"SparklesDialogue{part}/images/{id}.jpg", 50)
        talk = [turn("user", f"See IMAGE#{id}{TAG}?", id), turn("assistant", "Yes.")]
        rows = [{"dialogue": talk}, {"dialogue": talk[:1]}]
        corpus.write(f"SparklesDialogue{part}/annotations/SparklesDialogue{part}.json", rows)
    source = Sparkles(corpus.root, on_error="skip", style="small letter")
    assert [d.turns[0].question for d in source] == ["See image a?"] * 2
    assert source.report() == Report("sparkles_dialogue", 4, 2, 2, rejected={"no answer": 2})
    assert [entry.images for entry in source.entries] == [
        ("SparklesDialogueCC/images/804.jpg",),
        ("SparklesDialogueVG/images/2414970.jpg",),
    ]


def test_a_style_holds_for_a_dialogue_and_all_styles_occur(sparkles):
    rows = [{"id": n, "dialogue": ROW["dialogue"]} for n in range(40)]
    source = sparkles(*rows, style="any")
    firsts = [(d.turns[0].question, d.turns[1].question) for d in source]
    assert {q for q, _ in firsts} == {
        "Compare image a with the bus in image b, please.",
        "Compare image A with the bus in image B, please.",
        "Compare the first image with the bus in the second image, please.",
    }
    endings = {"a": "image b?", "A": "image B?", "t": "the second image?"}
    for question, later in firsts:
        key = question.removeprefix("Compare ").removeprefix("image ")[0]
        assert later.endswith(endings[key])
    assert firsts == [(d.turns[0].question, d.turns[1].question) for d in sparkles(*rows, style="any")]
    other = [(d.turns[0].question, d.turns[1].question) for d in sparkles(*rows, style="any", seed=1)]
    assert firsts != other


def test_evaluation_ids_name_rows_and_others_go_by_content(sparkles):
    source = sparkles({"evaluation_id": 7, **ROW}, ROW)
    assert source.entries[0].id == "SparklesDialogueCC:7"
    by_content = source.entries[1].id
    assert sparkles(ROW).entries[0].id == by_content  # whatever stands before it


def test_names_go_on_beyond_letters_and_words():
    assert [image_name(n, "small letter") for n in (1, 26, 27, 28, 52, 53)] == [
        *("image a", "image z", "image aa", "image ab", "image az", "image ba")
    ]
    assert [image_name(n, "capital letter") for n in (2, 703)] == ["image B", "image AAA"]
    assert [image_name(n, "ordinal") for n in (8, 11)] == ["the eighth image", "image number 11"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IMAGE#1 and IMAGE#12", "The first and the second"),
        ("x. IMAGE#1! IMAGE#1? IMAGE#1", "x. The first! The first? The first"),
        ("e.g. (IMAGE#1), a\nIMAGE#1", "e.g. (the first), a\nThe first"),
        ("myIMAGE#1", "myIMAGE#1"),
    ],
)
def test_whole_words_are_renamed(text, expected):
    assert rename(text, {"1": "the first", "12": "the second"}) == expected


def dialogue(*turns):
    return {"dialogue": list(turns)}


ANSWER = turn("assistant", "A")
DAMAGED = {
    "unknown image in a question": (dialogue(turn("user", "See IMAGE#5?"), ANSWER), "unknown image id"),
    "longer id than shown": (dialogue(turn("user", f"IMAGE#14{TAG} IMAGE#141?", 14), ANSWER), "unknown image id"),
    "named before it is shown": (
        dialogue(turn("user", "IMAGE#3?"), ANSWER, turn("user", f"IMAGE#3{TAG}?", 3), ANSWER),
        "unknown image id",
    ),
    "unknown image in an answer": (dialogue(turn("user", "Q"), turn("assistant", "IMAGE#5")), "unknown image id"),
    "more tags than images": (dialogue(turn("user", f"Q{TAG}{TAG}", 14), ANSWER), "placeholders and images differ"),
    "fewer tags than images": (dialogue(turn("user", "Q", 14), ANSWER), "placeholders and images differ"),
    "image twice": (dialogue(turn("user", f"{TAG}Q{TAG}", 14, 14), ANSWER), "duplicate id"),
    "image again later": (
        dialogue(turn("user", f"{TAG}Q", 14), ANSWER, turn("user", f"{TAG}Q", 14), ANSWER),
        "duplicate id",
    ),
    "missing file": (dialogue(turn("user", f"{TAG}Q", 15), ANSWER), "missing image file"),
    "path in the id": (dialogue(turn("user", f"{TAG}Q", "../14"), ANSWER), "path outside the data root"),
    "odd number of turns": (dialogue(turn("user", "Q"), ANSWER, turn("user", "R")), "no answer"),
    "roles turned round": (dialogue(ANSWER, turn("user", "Q")), "unknown or unexpected role"),
    "empty answer": (dialogue(turn("user", "Q"), turn("assistant", "")), "empty answer"),
    "no words": (dialogue(turn("user", TAG, 14), ANSWER), "empty question"),
    "images is an object": ({"dialogue": [{**turn("user", "Q"), "images": {}}, ANSWER]}, "wrong form"),
    "image without id": ({"dialogue": [{**turn("user", f"Q{TAG}"), "images": [{}]}, ANSWER]}, "wrong form"),
    "no dialogue": ({}, "wrong form"),
    "not an object": (3, "wrong form"),
    "a NUL character": (dialogue(turn("user", "Q\0"), ANSWER), "wrong form"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_row_is_rejected_with_its_reason(sparkles, case):
    bad, reason = DAMAGED[case]
    report = sparkles(ROW, bad, on_error="skip").report()
    assert (report.rows, report.members) == (2, 1)
    assert next(iter(report.rejected)).startswith(reason)


def test_an_unknown_style_is_an_error(sparkles):
    with pytest.raises(ValueError, match=f"style must be any, {', '.join(STYLES)}; found 'roman'"):
        len(sparkles(ROW, style="roman"))


def test_images_at_their_tags_whatever_the_order_of_the_list(sparkles, expect):
    content = f"Is IMAGE#1417{TAG} older than IMAGE#14{TAG}?"
    row = {"dialogue": [turn("user", content, 14, 1417), turn("assistant", "IMAGE#1417 is.")]}
    source = sparkles(row, images_first=False)
    expect(
        source[0],
        [
            *("S\n\n### Question:\nIs the first image\n### Image 1:\n", IMAGE, "\n older than the second image"),
            *("\n### Image 2:\n", IMAGE, "\n?\n\n### Answer:\n", ("The first image is.",)),
        ],
        [120, 20],
    )
    assert source.entries[0].images == ("SparklesDialogueCC/images/1417.jpg", "SparklesDialogueCC/images/14.jpg")
    other = {"dialogue": [turn("user", f"Is IMAGE#3{TAG} old?", 14), turn("assistant", "Yes.")]}
    assert sparkles(other, images_first=False, on_error="skip").report().rejected == {
        "placeholders and images differ": 1
    }

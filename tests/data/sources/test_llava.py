"""LLaVA's files: rounds, images under every name they come by, and the outcome of each damaged row."""

import json
import re

import pytest
from corpora import IMAGE

from visualchat.data.sources import Llava
from visualchat.data.sources.rows import Report

DETAIL, REASONING, DIALOGUE = "llava/detail_23k.json", "llava/complex_reasoning_77k.json", "llava/conversation_58k.json"
COCO = "coco/train2017"


def talk(*texts):
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def row(id, *texts, **fields):
    return {"id": id, "image": f"{id}.jpg", "conversations": talk(*texts), **fields}


@pytest.fixture
def dial(corpus):
    """A source of whole dialogues over the given rows, with pictures 1 to 3 in COCO's folder."""
    for number in (1, 2, 3):
        corpus.jpeg(f"{COCO}/{number:012d}.jpg", 40 * number)

    def make(*rows, **options):
        corpus.write(DIALOGUE, list(rows))
        options = {"files": [DIALOGUE], **options}
        return Llava(corpus.root, "llava_dial", **options)

    return make


def test_detail_and_reasoning_are_single_rounds(corpus, expect):
    corpus.jpeg(f"{COCO}/000000442786.jpg", 30)
    corpus.jpeg(f"{COCO}/000000000009.jpg", 200)
    corpus.write(DETAIL, [row("000000442786", "What do you see?\n<image>", "A bus.\nIt is red.", "More?", "No.")])
    corpus.write(
        REASONING, [row("000000000009", "<image>\nWhy is\nit so?", " Because. "), row("000000442786", "Q", "A")]
    )
    source = Llava(corpus.root, first_round_only=True)
    assert [entry.id for entry in source.entries] == [
        f"{DETAIL}:000000442786",
        f"{REASONING}:000000000009",
        f"{REASONING}:000000442786",
    ]
    head = ["S\n\n### Image 1:\n", IMAGE]
    expect(source[0], [*head, "\n\n### Question:\nWhat do you see?\n\n### Answer:\n", ("A bus.\nIt is red.",)], [30])
    expect(source[1], [*head, "\n\n### Question:\nWhy is\nit so?\n\n### Answer:\n", ("Because.",)], [200])
    expect(source[2], [*head, "\n\n### Question:\nQ\n\n### Answer:\n", ("A",)], [30])
    assert source.report() == Report("llava", 3, 3, 3, {}, {}, {"rows cut to their first round": 1})
    assert source.entries[1].images == (f"{COCO}/000000000009.jpg",)


def test_conversations_keep_their_rounds(dial, expect):
    source = dial(row("000000000001", "<image>\nWhat is it?", "A cat.", "Sure, <image>?", "Yes."), on_error="skip")
    assert source.report().rejected == {"placeholders and images differ": 1}
    source = dial(row("000000000001", "What is it?\n<image>", "A cat, `<img>`.", "Sure?", "Yes."))
    expect(
        source[0],
        [
            *("S\n\n### Image 1:\n", IMAGE, "\n\n### Question:\nWhat is it?\n\n### Answer:\n", ("A cat, `<img>`.",)),
            *("### Question:\nSure?\n\n### Answer:\n", ("Yes.",)),
        ],
        [40],
    )


def test_all_rounds_are_read_with_the_images_of_each(dial):
    """Whatever is asked of the class; only the published single rounds are cut, and that is counted."""
    rows = row("a", "<image>Q", "A", "<image>R", "B", image=["000000000001.jpg", "000000000002.jpg"])
    whole, cut = dial(rows), dial(rows, first_round_only=True)
    assert [turn.answer for turn in whole[0].turns] == ["A", "B"]
    assert len(whole.entries[0].images) == 2
    assert whole.report().notes == {}
    assert [turn.answer for turn in cut[0].turns] == ["A"]
    assert len(cut.entries[0].images) == 1
    assert cut.report().notes == {"rows cut to their first round": 1}


def test_rows_of_m4_instruct(dial):
    rows = {"sample_id": 7, "conversations": talk("<image><image>Same?", "No."), "metadata": {"dataset": "x"}}
    (found,) = dial({**rows, "image": [f"{COCO}/000000000001.jpg", f"{COCO}/000000000002.jpg"]}).entries
    assert (found.id, found.images) == (f"{DIALOGUE}:7", (f"{COCO}/000000000001.jpg", f"{COCO}/000000000002.jpg"))


def test_every_way_to_name_images(dial, corpus):
    """A bare name, a name with its folder, a list, none; a string is never a list of letters."""
    corpus.jpeg("gqa/images/7.jpg", 240)
    rows = [
        row("a", "<image>Q", "A", image="000000000001.jpg"),
        row("b", "<image>Q", "A", image="gqa/images/7.jpg"),
        row("c", "<image><image>Q", "A", image=["000000000002.jpg", f"{COCO}/000000000001.jpg"]),
        {"id": "d", "conversations": talk("Just <image> text", "A")},
        row("e", "Q", "A", image=["000000000003.jpg"]),
        row("f", "Q", "A", image=None),
    ]
    found = dial(*rows)
    assert [entry.images for entry in found.entries] == [
        (f"{COCO}/000000000001.jpg",),
        ("gqa/images/7.jpg",),
        (f"{COCO}/000000000002.jpg", f"{COCO}/000000000001.jpg"),
        (),
        (f"{COCO}/000000000003.jpg",),
        (),
    ]
    assert found[3].turns[0].content == ("Just <image> text",)


def test_images_stay_between_words_or_go_first(dial, expect):
    rows = row(
        "x",
        *("Is <image> older than <image>?", "Yes.", "And\n<image>\nthan it?", "No."),
        image=["000000000003.jpg", "000000000001.jpg", "000000000002.jpg"],
    )
    tail = [("Yes.",), "### Image 3:\n", IMAGE, "\n\n### Question:\nAnd than it?\n\n### Answer:\n", ("No.",)]
    expect(
        dial(rows)[0],
        [
            *("S\n\n### Image 1:\n", IMAGE, "\n### Image 2:\n", IMAGE),
            *("\n\n### Question:\nIs older than?\n\n### Answer:\n", *tail),
        ],
        [120, 40, 80],
    )
    expect(
        dial(rows, images_first=False)[0],
        [
            *("S\n\n### Question:\nIs \n### Image 1:\n", IMAGE, "\n older than \n### Image 2:\n", IMAGE),
            *("\n?\n\n### Answer:\n", ("Yes.",), "### Question:\nAnd\n### Image 3:\n", IMAGE),
            *("\nthan it?\n\n### Answer:\n", ("No.",)),
        ],
        [120, 40, 80],
    )


GOOD = row("good", "<image>\nQ", "A", image="000000000001.jpg")

DAMAGED = {
    "not an object": (["x"], "wrong form"),
    "no id": ({"conversations": talk("Q", "A")}, "wrong form"),
    "id is a flag": ({**GOOD, "id": True}, "wrong form"),
    "no conversations": ({"id": "x"}, "wrong form"),
    "conversations is text": ({"id": "x", "conversations": "Q"}, "wrong form"),
    "a message is text": ({"id": "x", "conversations": ["Q", "A"]}, "wrong form"),
    "value is a number": ({"id": "x", "conversations": [{"from": "human", "value": 1}]}, "wrong form"),
    "value is missing": ({"id": "x", "conversations": [{"from": "human"}]}, "wrong form"),
    "half a surrogate": (row("x", "Q \ud800", "A", image=None), "wrong form"),
    "a NUL character": (row("x", "Q \0", "A", image=None), "wrong form"),
    "image is a number": (row("x", "Q", "A", image=7), "wrong form"),
    "image holds a number": (row("x", "Q", "A", image=["a.jpg", 7]), "wrong form"),
    "role is a list": ({"id": "x", "conversations": [{"from": ["human"], "value": "Q"}]}, "unknown or unexpected role"),
    "image is an object": (row("x", "Q", "A", image={"path": "a.jpg"}), "wrong form"),
    "unknown role": ({"id": "x", "conversations": [{"from": "bot", "value": "Q"}]}, "unknown or unexpected role"),
    "role twice": (
        {"id": "x", "conversations": talk("Q", "A") * 2 + talk("Q", "A")[::-1]},
        "unknown or unexpected role",
    ),
    "begins with the answer": ({"id": "x", "conversations": talk("Q", "A")[1:]}, "unknown or unexpected role"),
    "no messages": ({"id": "x", "conversations": []}, "no answer"),
    "no answer": (row("x", "Q", image=None), "no answer"),
    "odd number of messages": (row("x", "Q", "A", "Q", image=None), "no answer"),
    "empty answer": (row("x", "Q", " \n", image=None), "empty answer"),
    "empty later answer": (row("x", "Q", "A", "Q", "", image=None), "empty answer"),
    "empty question": (row("x", " ", "A", image=None), "empty question"),
    "nothing but an image": (row("x", "<image>\n", "A", image="000000000001.jpg"), "empty question"),
    "too many placeholders": (
        row("x", "<image><image>Q", "A", image="000000000001.jpg"),
        "placeholders and images differ",
    ),
    "too few placeholders": (
        row("x", "<image>Q", "A", image=["000000000001.jpg"] * 2),
        "placeholders and images differ",
    ),
    "placeholder in an answer": (
        row("x", "<image>Q", "<image>A", image="000000000001.jpg"),
        "placeholder in an answer",
    ),
    "missing file": (row("x", "Q", "A", image="000000000999.jpg"), "missing image file"),
    "missing folder": (row("x", "Q", "A", image="nowhere/1.jpg"), "missing image file"),
    "a folder": (row("x", "Q", "A", image="coco/train2017"), "missing image file"),
    "wrong case": (row("x", "Q", "A", image="000000000001.JPG"), "missing image file"),
    "parent folder": (row("x", "Q", "A", image="../outside.jpg"), "path outside the data root"),
    "parent in the middle": (row("x", "Q", "A", image="coco/../../outside.jpg"), "path outside the data root"),
    "parent with backslashes": (row("x", "Q", "A", image="..\\outside.jpg"), "path outside the data root"),
    "bare parent": (row("x", "Q", "A", image=".."), "path outside the data root"),
    "absolute path": (row("x", "Q", "A", image="/etc/passwd"), "path outside the data root"),
    "drive": (row("x", "Q", "A", image="C:\\a.jpg"), "path outside the data root"),
    "NUL in the name": (row("x", "Q", "A", image="a\0.jpg"), "path outside the data root"),
    "empty name": (row("x", "Q", "A", image=""), "missing image file"),
    "link out": (row("x", "Q", "A", image=f"{COCO}/out.jpg"), "path outside the data root"),
    "folder that is a link out": (row("x", "Q", "A", image="away/outside.jpg"), "path outside the data root"),
    "link to nothing": (row("x", "Q", "A", image=f"{COCO}/gone.jpg"), "missing image file"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_row_is_rejected_with_its_reason(case, dial, corpus, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "outside.jpg").write_bytes(b"x")
    (corpus.root / COCO / "out.jpg").symlink_to(outside / "outside.jpg")
    (corpus.root / "away").symlink_to(outside)
    (corpus.root / COCO / "gone.jpg").symlink_to(corpus.root / "nothing")
    bad, reason = DAMAGED[case]
    source = dial(GOOD, bad, GOOD, on_error="skip")
    report = source.report()
    assert (report.rows, report.members, report.dialogues) == (3, 2, 2)
    assert len(source) == 2
    assert list(report.rejected.values()) == [1]
    assert next(iter(report.rejected)).startswith(reason)
    (error,) = source.errors
    assert str(error).startswith(f"llava_dial, {DIALOGUE}, row 2")
    with pytest.raises(ValueError, match=rf"llava_dial: 1 of 3 rows are damaged[\s\S]*{re.escape(str(error))}"):
        len(dial(GOOD, bad, GOOD))


def test_a_row_of_thousands_of_digits_is_one_bad_row(corpus, dial):
    dial(GOOD)
    corpus.write(DIALOGUE, f'[{json.dumps(GOOD)}, {{"id": {"7" * 5000}}}, {json.dumps(GOOD)}]')
    source = Llava(corpus.root, files=[DIALOGUE], on_error="skip")
    assert [error.row for error in source.errors] == [f"{DIALOGUE}, row 2"]
    assert len(source) == 2


def test_a_link_within_the_root_is_followed(dial, corpus):
    (corpus.root / COCO / "within.jpg").symlink_to(corpus.root / COCO / "000000000002.jpg")
    assert dial(row("x", "Q", "A", image="within.jpg")).entries[0].images == (f"{COCO}/within.jpg",)


def test_rows_with_one_id_stay_apart_but_on_one_side(dial):
    source = dial(GOOD, row("good", "Other", "B", image=None), GOOD)
    assert [entry.id for entry in source.entries] == [f"{DIALOGUE}:good", f"{DIALOGUE}:good#2", f"{DIALOGUE}:good#3"]
    assert {entry.group for entry in source.entries} == {f"{DIALOGUE}:good"}
    assert source.report().notes == {"rows whose id occurred before": 2}


def test_many_damaged_rows_are_counted_and_the_first_named(dial):
    bad = [row(f"bad{n}", "Q", image=None) for n in range(8)]
    with pytest.raises(ValueError, match=r"8 of 9 rows are damaged; on_error=skip") as error:
        dial(GOOD, *bad).report()
    assert str(error.value).count("no answer") == 5
    assert str(error.value).endswith("and 3 more")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"id": "1", "conv', r"detail_23k.json is not valid JSON at line 1, column 1\d: .*is the download complete"),
        (b"\xff\xfe\xfa", "detail_23k.json is not valid JSON"),
        ("", "detail_23k.json is not valid JSON at line 1"),
        ({"rows": []}, "expected a list of rows, found dict"),
        ("[" * 200_000, "detail_23k.json is not valid JSON"),
    ],
)
def test_a_broken_file_is_named(corpus, content, message):
    corpus.write(DETAIL, content)
    with pytest.raises(ValueError, match=message):
        len(Llava(corpus.root, files=[DETAIL]))


def test_settings_are_checked(corpus):
    with pytest.raises(ValueError, match="on_error must be one of error, skip, not 'ignore'"):
        len(Llava(corpus.root, files=[], on_error="ignore"))
    with pytest.raises(ValueError, match=r"data root .*nowhere' is not a folder"):
        len(Llava(corpus.root / "nowhere"))
    with pytest.raises(ValueError, match=r"'llava/detail_23k.json' does not exist under the data root"):
        len(Llava(corpus.root))
    with pytest.raises(ValueError, match=r"'../x.json' must be relative to the data root"):
        len(Llava(corpus.root, files=["../x.json"]))


def test_slices_and_iteration(dial):
    source = dial(GOOD, GOOD, GOOD)
    assert source[1:] == list(source)[1:]
    assert source[-1].id == f"{DIALOGUE}:good#3"

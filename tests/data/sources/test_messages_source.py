"""Your own dialogues: every form of a row and of an image, in JSON Lines, JSON and Parquet."""

import base64
import gzip
import json

import pytest
from corpora import IMAGE, encoded, jpeg, shade_of

from visualchat.data.sources import Messages
from visualchat.data.sources.rows import Report


def text(words):
    return {"type": "text", "text": words}


def user(*content):
    return {"role": "user", "content": content[0] if len(content) == 1 and isinstance(content[0], str) else [*content]}


def assistant(words):
    return {"role": "assistant", "content": words}


@pytest.fixture
def read(corpus):
    corpus.jpeg("pictures/a.jpg", 40)
    corpus.jpeg("pictures/b.jpg", 200)

    def make(*rows, name="own.jsonl", **options):
        if name.endswith(".jsonl"):
            corpus.lines(name, rows)
        else:
            corpus.write(name, list(rows))
        return Messages(corpus.root, [name], **options)

    return make


A, B = {"type": "image", "path": "pictures/a.jpg"}, {"type": "image", "path": "pictures/b.jpg"}


def test_images_stay_where_they_are(read, expect):
    row = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            user(text("Is this "), A, text(" or this "), B, text(" older? <image> ### Image 1:")),
            {"role": "assistant", "content": [text("The "), text("first.")]},
            user("Why?"),
            assistant("It looks so."),
        ]
    }
    tail = [
        *("\n\n### Answer:\n", ("The first.",), "### Question:\nWhy?\n\n### Answer:\n", ("It looks so.",)),
    ]
    expect(
        read(row)[0],
        [
            *("Be brief.\n\n### Question:\nIs this \n### Image 1:\n", IMAGE, "\n or this \n### Image 2:\n", IMAGE),
            *("\n older? <image> ### Image 1:", *tail),
        ],
        [40, 200],
    )
    expect(
        read(row, images_first=True)[0],
        [
            *("Be brief.\n\n### Image 1:\n", IMAGE, "\n### Image 2:\n", IMAGE, "\n\n### Question:\n"),
            *("Is this or this older? <image> ### Image 1:", *tail),
        ],
        [40, 200],
    )


@pytest.mark.parametrize(
    "image",
    [
        {"type": "image", "path": "pictures/a.jpg"},
        {"type": "image", "image": "pictures/a.jpg"},
        {"type": "image", "base64": encoded(40)},
        {"type": "image", "url": f"data:image/jpeg;base64,{encoded(40)}"},
        {"type": "image", "text": None, "path": "pictures/a.jpg"},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded(40)}", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "pictures/a.jpg"}},
        {"type": "image_url", "image_url": "pictures/a.jpg"},
    ],
)
def test_every_form_of_an_image_in_the_content(read, image):
    source = read({"messages": [user(image, text("Q")), assistant("A")]})
    assert [shade_of(picture) for picture in source[0].images] == pytest.approx([40], abs=3)


ROWS_WITH_A_COLUMN = {
    "items in order": {
        "messages": [user({"type": "image"}, {"type": "image"}, text("Q <image>")), assistant("A")],
        "images": ["pictures/a.jpg", "pictures/b.jpg"],
    },
    "items by index": {
        "messages": [
            user({"type": "image", "index": 1, "text": None}, {"type": "image", "index": 0}, text("Q <image>")),
            assistant("A"),
        ],
        "images": ["pictures/b.jpg", "pictures/a.jpg"],
    },
    "no places at all": {
        "messages": [{"role": "system", "content": "S"}, user("Q &lt;image>"), assistant("A")],
        "images": ["pictures/a.jpg", "pictures/b.jpg"],
    },
    "prompt and completion": {
        "prompt": [user({"type": "image"}, {"type": "image"}, text("Q"))],
        "completion": [assistant("A")],
        "images": ["pictures/a.jpg", "pictures/b.jpg"],
    },
    "placeholders": {
        "messages": [user("<image><image>Q"), assistant("A")],
        "images": ["pictures/a.jpg", "pictures/b.jpg"],
    },
    "conversations": {
        "conversations": [{"from": "human", "value": "<image>\n<image>\nQ"}, {"from": "gpt", "value": "A"}],
        "images": ["pictures/a.jpg", "pictures/b.jpg"],
        "system": "S",
    },
    "Mantis-Instruct": {
        "conversation": [user("<image> <image> Q"), assistant("A")],
        "images": [{"bytes": None, "path": "pictures/a.jpg"}, {"bytes": None, "path": "pictures/b.jpg"}],
    },
    "the Cauldron": {
        "texts": [{"user": "Q", "assistant": "A", "source": "x"}, {"user": "R", "assistant": "B", "source": "x"}],
        "images": [{"bytes": None, "path": "pictures/a.jpg"}, {"bytes": None, "path": "pictures/b.jpg"}],
    },
    "JSON as text": {
        "messages": json.dumps([user("<image><image>Q"), assistant("A")]),
        "images": ["pictures/a.jpg", "pictures/b.jpg"],
    },
    "data URLs": {
        "messages": [user("<image><image>Q"), assistant("A")],
        "images": [f"data:image/jpeg;base64,{encoded(40)}", "pictures/b.jpg"],
    },
}


@pytest.mark.parametrize("case", ROWS_WITH_A_COLUMN)
def test_a_column_of_images(read, case):
    dialogue = read(ROWS_WITH_A_COLUMN[case])[0]
    assert [shade_of(image) for image in dialogue.images] == pytest.approx([40, 200], abs=3)
    assert dialogue.turns[0].content[2].strip().startswith("Q")
    assert dialogue.turns[0].answer.startswith("A")


def test_placeholders_over_several_turns_and_one_image_as_a_string(read, expect):
    row = {
        "messages": [user("What <image> is it?"), assistant("A."), user("And <image>?"), assistant("B.")],
        "images": ["pictures/a.jpg", "pictures/b.jpg"],
    }
    expect(
        read(row)[0],
        [
            *("S\n\n### Question:\nWhat \n### Image 1:\n", IMAGE, "\n is it?\n\n### Answer:\n", ("A.",)),
            *("### Question:\nAnd \n### Image 2:\n", IMAGE, "\n?\n\n### Answer:\n", ("B.",)),
        ],
        [40, 200],
    )
    single = read({"messages": [user("<image>Q"), assistant("A")], "image": "pictures/b.jpg"})
    assert single.entries[0].images == ("pictures/b.jpg",)


def test_without_a_column_placeholders_are_text(read):
    dialogue = read({"messages": [user("What does <image> mean?"), assistant("A tag.")]})[0]
    assert dialogue.turns[0].content == ("What does <image> mean?",)


GOOD = {"id": "good", "messages": [user("Q"), assistant("A")]}
DAMAGED = {
    "broken JSON": ('{"messages": [\n', "broken JSON"),
    "not UTF-8": ('{"messages": "\udcff"}\n', "broken JSON"),
    "a list": ([1], "wrong form"),
    "a number": (7, "wrong form"),
    "no messages": ({"text": "hello"}, "wrong form"),
    "messages is text": ({"messages": "hello"}, "wrong form"),
    "no messages in it": ({"messages": []}, "no answer"),
    "only a system text": ({"messages": [{"role": "system", "content": "S"}]}, "no answer"),
    "no answer": ({"messages": [user("Q")]}, "no answer"),
    "odd number of turns": ({"messages": [user("Q"), assistant("A"), user("R")]}, "no answer"),
    "unknown role": ({"messages": [user("Q"), {"role": "tool", "content": "A"}]}, "unknown or unexpected role"),
    "role missing": ({"messages": [{"content": "Q"}, assistant("A")]}, "unknown or unexpected role"),
    "late system": ({"messages": [user("Q"), {"role": "system", "content": "S"}]}, "unknown or unexpected role"),
    "user twice": ({"messages": [user("Q"), user("R")]}, "unknown or unexpected role"),
    "from is a list": ({"conversations": [{"from": ["human"], "value": "Q"}]}, "unknown or unexpected role"),
    "role is a list": ({"messages": [{"role": ["user"], "content": "Q"}]}, "unknown or unexpected role"),
    "placeholder in an answer": (
        {"messages": [user("<image>Q"), assistant("<image>")], "images": ["pictures/a.jpg"]},
        "placeholder in an answer",
    ),
    "messages is JSON of no list": ({"messages": "{}"}, "wrong form"),
    "a round without a user": ({"texts": [{"assistant": "A"}]}, "wrong form"),
    "texts holds texts": ({"texts": ["Q", "A"]}, "wrong form"),
    "image_url of the web": (
        {
            "messages": [
                user({"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}, text("Q")),
                assistant("A"),
            ]
        },
        "wrong form",
    ),
    "image_url without url": (
        {"messages": [user({"type": "image_url", "image_url": {}}, text("Q")), assistant("A")]},
        "wrong form",
    ),
    "empty answer": ({"messages": [user("Q"), assistant(" ")]}, "empty answer"),
    "empty question": ({"messages": [user(""), assistant("A")]}, "empty question"),
    "empty text item": ({"messages": [user(A, text(" ")), assistant("A")]}, "empty question"),
    "only an image": ({"messages": [user(A), assistant("A")]}, "empty question"),
    "content is missing": ({"messages": [{"role": "user"}, assistant("A")]}, "wrong form"),
    "content is a number": ({"messages": [{"role": "user", "content": 3}, assistant("A")]}, "wrong form"),
    "an item is text": ({"messages": [user("a", "b"), assistant("A")]}, "wrong form"),
    "an item of another kind": (
        {"messages": [user({"type": "video", "path": "x"}, text("Q")), assistant("A")]},
        "wrong form",
    ),
    "an answer with an image": (
        {"messages": [user("Q"), {"role": "assistant", "content": [A, text("A")]}]},
        "wrong form",
    ),
    "bad base64": ({"messages": [user({"type": "image", "base64": "Q"}, text("Q")), assistant("A")]}, "wrong form"),
    "a web address": (
        {"messages": [user({"type": "image", "url": "https://example.org/a.jpg"}, text("Q")), assistant("A")]},
        "wrong form",
    ),
    "an image without data": (
        {"messages": [user({"type": "image"}, text("Q")), assistant("A")]},
        "placeholders and images differ",
    ),
    "too few images": (
        {"messages": [user("<image><image>Q"), assistant("A")], "images": ["pictures/a.jpg"]},
        "placeholders and images differ",
    ),
    "too many images": (
        {"messages": [user("<image>Q"), assistant("A")], "images": ["pictures/a.jpg"] * 2},
        "placeholders and images differ",
    ),
    "an index twice": (
        {
            "messages": [user({"type": "image", "index": 0}, {"type": "image", "index": 0}, text("Q")), assistant("A")],
            "images": ["pictures/a.jpg", "pictures/b.jpg"],
        },
        "placeholders and images differ",
    ),
    "a negative index": (
        {"messages": [user({"type": "image", "index": -1}, text("Q")), assistant("A")], "images": ["pictures/a.jpg"]},
        "placeholders and images differ",
    ),
    "a number as image": ({"messages": [user("Q"), assistant("A")], "images": [5]}, "wrong form"),
    "an empty image": (
        {"messages": [user("Q"), assistant("A")], "images": [{"bytes": None, "path": None}]},
        "wrong form",
    ),
    "a bad data URL": ({"messages": [user("Q"), assistant("A")], "images": ["data:image/png;base64,Q"]}, "wrong form"),
    "missing file": ({"messages": [user("Q"), assistant("A")], "images": ["pictures/c.jpg"]}, "missing image file"),
    "missing file in the content": (
        {"messages": [user({"type": "image", "path": "c.jpg"}, text("Q")), assistant("A")]},
        "missing image file",
    ),
    "path escape": ({"messages": [user("Q"), assistant("A")], "images": ["../a.jpg"]}, "path outside the data root"),
    "path escape in the content": (
        {"messages": [user({"type": "image", "path": "/etc/passwd"}, text("Q")), assistant("A")]},
        "path outside the data root",
    ),
    "half a surrogate": ({"messages": [user("\ud800"), assistant("A")]}, "wrong form"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_row_is_rejected_with_its_reason(read, corpus, case):
    bad, reason = DAMAGED[case]
    read(GOOD)
    line = bad if isinstance(bad, str) else json.dumps(bad) + "\n"
    content = f"{json.dumps(GOOD)}\n\n".encode() + line.encode("utf-8", "surrogateescape") + json.dumps(GOOD).encode()
    corpus.write("own.jsonl", content)
    source = Messages(corpus.root, ["own.jsonl"], on_error="skip")
    report = source.report()
    assert (report.rows, report.members, report.dialogues) == (3, 2, 2)
    assert next(iter(report.rejected)).startswith(reason)
    assert [entry.id for entry in source.entries] == ["own.jsonl:good", "own.jsonl:good#2"]
    assert [dialogue.turns[0].answer for dialogue in source] == ["A", "A"]
    with pytest.raises(ValueError, match="1 of 3 rows are damaged"):
        len(Messages(corpus.root, ["own.jsonl"]))


def test_bad_rows_are_named_by_file_and_line(read, corpus):
    """The second file has its own lines, blank ones counted; rows without or of repeated id have theirs."""
    named = {"id": "x", "messages": [user("Q")]}
    corpus.lines("one.jsonl", [GOOD] * 3)
    corpus.write("two.jsonl", f"{json.dumps(GOOD)}\n\n\n{{broken\n{json.dumps({'messages': []})}\n")
    corpus.write("three.json", [GOOD, named, named])
    source = Messages(corpus.root, ["one.jsonl", "two.jsonl", "three.json"], on_error="skip")
    assert [error.row for error in source.errors] == [
        "two.jsonl, line 4",
        "two.jsonl, line 5",
        "three.json, row 2 (id x)",
        "three.json, row 3 (id x)",
    ]
    assert [source.place(index) for index in (0, 3, 4)] == [
        "one.jsonl, line 1 (id good)",
        "two.jsonl, line 1 (id good)",
        "three.json, row 1 (id good)",
    ]


def test_no_row_at_all_is_an_error(corpus):
    corpus.write("own.jsonl", "\n\n")
    with pytest.raises(ValueError, match=r"messages: there is no row; files=\['own.jsonl'\]"):
        len(Messages(corpus.root, ["own.jsonl"], on_error="skip"))


def test_packed_lines(corpus):
    rows = "".join(json.dumps({**GOOD, "id": n}) + "\n" for n in range(5)).encode()
    corpus.write("own.jsonl.gz", gzip.compress(rows))
    source = Messages(corpus.root, ["own.jsonl.gz"])
    assert [dialogue.id for dialogue in source] == [f"own.jsonl.gz:{n}" for n in range(5)]
    corpus.write("cut.jsonl.gz", gzip.compress(rows)[:-9])
    with pytest.raises(ValueError, match=r"cut.jsonl.gz is not valid gzip: .*is the download complete"):
        len(Messages(corpus.root, ["cut.jsonl.gz"]))


def test_images_in_a_folder_of_their_own(corpus):
    corpus.jpeg("nlvr2/train_images/a.jpg", 40)
    corpus.lines(
        "nlvr2/rows.jsonl", [{"conversation": [user("<image> Q"), assistant("A")], "images": [{"path": "a.jpg"}]}]
    )
    source = Messages(corpus.root, ["nlvr2/rows.jsonl"], image_folder="nlvr2/train_images")
    assert source.entries[0].images == ("nlvr2/train_images/a.jpg",)


def test_rows_without_an_id_go_by_their_content(read):
    rows = [{"messages": [user(f"Q{n}"), assistant("A")]} for n in range(3)]
    ids = [entry.id for entry in read(*rows).entries]
    assert len(set(ids)) == 3
    assert [entry.id for entry in read(*rows[::-1]).entries] == ids[::-1]


def test_several_files_and_a_json_list(read, corpus):
    corpus.lines("one.jsonl", [GOOD])
    corpus.write("two.json", [GOOD, {**GOOD, "id": 7}])
    source = Messages(corpus.root, ["one.jsonl", "two.json"])
    assert [dialogue.id for dialogue in source] == ["one.jsonl:good", "two.json:good", "two.json:7"]
    assert source[2].turns[0].answer == "A"
    assert source.report() == Report("messages", 3, 3, 3)


def test_files_of_other_kinds_are_refused(corpus):
    corpus.write("own.csv", "a,b")
    with pytest.raises(ValueError, match=r"own.csv: expected a name that ends in .jsonl, .ndjson, .json, .parquet"):
        len(Messages(corpus.root, ["own.csv"]))
    corpus.write("own.json", {"rows": []})
    with pytest.raises(ValueError, match=r"own.json: expected a list of rows, found dict"):
        len(Messages(corpus.root, ["own.json"]))


def test_parquet_as_the_hub_has_it(corpus):
    """Content items with every column, images as structs of bytes and path; several row groups in any order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    corpus.jpeg("pictures/a.jpg", 40)
    rows = []
    for n in range(7):
        items = [
            {"type": "image", "text": None, "index": 0},
            {"type": "text", "text": f"Q{n}", "index": None},
            {"type": "image", "text": None, "index": 1},
        ]
        answer = [{"type": "text", "text": f"A{n}", "index": None}]
        images = [{"bytes": jpeg(30 * n), "path": "x.jpg"}, {"bytes": None, "path": "pictures/a.jpg"}]
        messages = [{"role": "user", "content": items}, {"role": "assistant", "content": answer}]
        rows.append({"messages": messages, "images": images})
    rows.append({"messages": rows[0]["messages"][:1], "images": []})
    pq.write_table(pa.Table.from_pylist(rows), corpus.root / "own.parquet", row_group_size=3)
    source = Messages(corpus.root, ["own.parquet"], on_error="skip")
    assert source.report() == Report("messages", 8, 7, 7, rejected={"no answer": 1})
    for n in (6, 0, 3, 5):
        assert source[n].turns[0].question == f"Q{n}"
        assert [shade_of(image) for image in source[n].images] == pytest.approx([30 * n, 40], abs=3)
    assert source.entries[0].images[1] == "pictures/a.jpg"
    assert source.entries[0].images[0].startswith("sha256:")


def test_inline_images_have_one_identity_whatever_their_form(read):
    data = {"type": "image", "base64": base64.b64encode(jpeg(9)).decode()}
    column = {"messages": [user("Q"), assistant("A")], "images": [f"data:image/png;base64,{encoded(9)}"]}
    source = read({"messages": [user(data, text("Q")), assistant("A")]}, column)
    first, second = (entry.images for entry in source.entries)
    assert first == second

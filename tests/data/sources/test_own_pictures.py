"""Tables and folders of pictures: columns, captions, and the outcome of each damaged row."""

import pytest

from visualchat.data.batching.images import check_images
from visualchat.data.sources import PictureFolder, Spreadsheet
from visualchat.data.sources.captions import SHORT_REQUESTS


@pytest.fixture
def table(corpus):
    for number, name in enumerate("abc"):
        corpus.jpeg(f"pictures/{name}.jpg", 40 * number)

    def make(*lines: str, file: str = "train.csv", **options) -> Spreadsheet:
        corpus.write(file, "".join(f"{line}\n" for line in lines))
        return Spreadsheet(corpus.root, **{"files": [file], "image_folder": "pictures", **options})

    return make


def test_questions_and_answers(table):
    source = table(
        "id,image,question,answer",
        '7,a.jpg,"What, then?","A ""cat"".',
        'Sitting."',
        ",a.jpg; b.jpg,Is <image> older than <image>?,No.",
        images_first=False,
    )
    first, second = source
    assert (first.id, first.turns[0].content[1:]) == ("train.csv:7", ("What, then?",))
    assert first.turns[0].answer == 'A "cat".\nSitting.'
    assert [item if isinstance(item, str) else item.name for item in second.turns[0].content] == [
        *("Is ", "a.jpg", " older than ", "b.jpg", "?")
    ]
    assert source[1] == second  # read alone
    assert [source.place(index) for index in (0, 1)] == ["train.csv, line 2 (id 7)", "train.csv, line 4"]


def test_captions_tabs_and_several_columns(table):
    source = table(
        "before\tafter\ttext",
        "a.jpg\tb.jpg\tTwo.",
        "c.jpg\t\tOne.",
        file="own.tsv",
        image=["before", "after"],
        caption="text",
    )
    assert [[image.name for image in dialogue.images] for dialogue in source] == [["a.jpg", "b.jpg"], ["c.jpg"]]
    assert all(dialogue.turns[0].question in SHORT_REQUESTS for dialogue in source)
    asked = table("image,caption", "a.jpg,One.", request="Describe it.", files="train.csv")
    assert asked[0].turns[0].question == "Describe it."


TABLE_DAMAGED = {
    "too few cells": ("a.jpg,Q", "wrong form", "2 cells, but 3 columns"),
    "too many cells": ("a.jpg,Q,A,B", "wrong form", "4 cells, but 3 columns"),
    "no image": (",Q,A", "no image", "image is empty"),
    "missing file": ("z.jpg,Q,A", "missing image file", "pictures/z.jpg"),
    "path escape": ("../../z.jpg,Q,A", "path outside the data root", "must be relative"),
    "empty question": ("a.jpg, ,A", "empty question", "question is"),
    "empty answer": ("a.jpg,Q,", "empty answer", "answer is"),
    "too many placeholders": ("a.jpg,<image><image>Q,A", "placeholders and images differ", "found 2"),
    "placeholder in an answer": ("a.jpg,Q,<image>", "placeholder in an answer", "<image>"),
    "not UTF-8": (b"a.jpg,Q\xff,A\n".decode("latin-1"), "wrong form", "save the file as UTF-8"),
}


@pytest.mark.parametrize("case", TABLE_DAMAGED)
def test_a_damaged_line_is_rejected_with_its_reason(table, corpus, case):
    line, reason, detail = TABLE_DAMAGED[case]
    table()
    lines = "image,question,answer", "a.jpg,Q,A", "", line, "b.jpg,Q,A"
    corpus.write("train.csv", "\n".join(lines).encode("latin-1"))
    source = Spreadsheet(corpus.root, ["train.csv"], image_folder="pictures", on_error="skip")
    (error,) = source.errors
    assert (error.row, str(error.reason), len(source)) == ("train.csv, line 4", reason, 2)
    assert detail in error.detail


@pytest.mark.parametrize(
    ("file", "lines", "shown"),
    [
        ("excel.csv", ("image;question;answer", '"a.jpg;b.jpg";Same?;"No; no."'), ["a.jpg", "b.jpg"]),
        ("named.csv", ("image\tquestion\tanswer", "a.jpg\tSame?\tNo; no."), ["a.jpg"]),
        ("UPPER.TSV", ("image\tquestion\tanswer", "a.jpg;b.jpg\tSame?\tNo; no."), ["a.jpg", "b.jpg"]),
        ("commas.csv", ("image,question;asked,answer,question", "a.jpg,x,No; no.,Same?"), ["a.jpg"]),
    ],
)
def test_what_stands_between_columns_is_seen_from_the_first_line(table, file, lines, shown):
    (dialogue,) = table(*lines, file=file)
    assert [image.name for image in dialogue.images] == shown
    assert (dialogue.turns[0].question, dialogue.turns[0].answer) == ("Same?", "No; no.")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("image,question,answer\na.jpg,Q,A\n".encode("utf-16"), "train.csv is UTF-16; save it as UTF-8"),
        ("image,Größe,answer\na.jpg,Q,A\n".encode("latin-1"), "train.csv, line 1: not UTF-8"),
        (b"image,question,answer\ra.jpg,Q,A\r", "train.csv: its lines end in a bare carriage return"),
        (b"\nimage,question,answer\n", "train.csv is empty or begins with a blank line"),
    ],
    ids=["UTF-16", "Latin-1", "carriage returns", "blank"],
)
def test_a_table_saved_in_another_way_is_named_with_the_remedy(corpus, content, said):
    corpus.write("train.csv", content)
    with pytest.raises(ValueError, match=said):
        len(Spreadsheet(corpus.root, ["train.csv"], on_error="skip"))


def test_columns_that_are_not_there_are_named(table):
    with pytest.raises(
        ValueError, match=r"no column 'image' for images; the columns are picture, text; .*source\.image="
    ):
        len(table("picture,text", "a.jpg,A"))
    with pytest.raises(ValueError, match=r"expected columns 'question' and 'answer', or 'caption'; .*source\.caption="):
        len(table("image,text", "a.jpg,A"))
    with pytest.raises(ValueError, match=r"train\.csv is empty"):
        len(table())
    with pytest.raises(ValueError, match=r"train\.xlsx: expected a name that ends in \.csv or \.tsv"):
        len(table("image", file="train.xlsx"))


@pytest.mark.parametrize("later", ['b.jpg,What is "it?,A', "b.jpg,Q,A"], ids=["closed by another", "never closed"])
def test_a_stray_quote_swallows_no_rows(table, later):
    """Where a quote opens by mistake nobody knows which rows the cell takes: no policy goes on."""
    lines = "image,question,answer", "a.jpg,Q,A", 'a.jpg,"What is it?,A', "b.jpg,Q,A", later, "c.jpg,Q,A"
    with pytest.raises(ValueError, match=r'train\.csv, line 3: a quoted cell that begins here .* write " twice'):
        len(table(*lines, on_error="skip"))


def test_two_columns_of_one_name_are_refused(table):
    with pytest.raises(ValueError, match=r"train\.csv: two columns are called 'answer'"):
        len(table("image,question,answer,answer", "a.jpg,Q,A,B"))


@pytest.fixture
def folder(corpus):
    for name in ("a.jpg", "b.JPG", "sub/c.png"):
        corpus.jpeg(f"own/{name}", 90)
    return corpus


def test_a_text_beside_each_picture(folder):
    folder.write("own/a.txt", "A cat.\n")
    folder.write("own/b.txt", " ")
    source = PictureFolder(folder.root, "own", on_error="skip")
    assert [(dialogue.id, dialogue.turns[0].answer) for dialogue in source] == [("own:a.jpg", "A cat.")]
    assert source[0].turns[0].question in SHORT_REQUESTS
    assert [str(error) for error in source.errors] == [
        "pictures, own, picture 2 (id b.JPG): empty answer: the caption is blank",
        "pictures, own, picture 3 (id sub/c.png): no answer: the image has no caption, expected c.txt",
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.json", {"a.jpg": "A.", "sub/c.png": "C.", "b.JPG": 7}),
        ("metadata.csv", "file_name,text\na.jpg,A.\nsub/c.png,C.\nb.JPG\n"),
        ("metadata.tsv", "image\tcaption\na.jpg\tA.\nsub/c.png\tC.\nb.JPG\t\n"),
        (
            "metadata.jsonl",
            '{"file_name": "a.jpg", "text": "A."}\n{"file_name": "sub/c.png", "text": "C."}\n{"x": 1}\n',
        ),
    ],
)
def test_one_file_of_captions(folder, name, content):
    folder.write(f"own/{name}", content)
    source = PictureFolder(folder.root, "own", captions=name, request="Say it.", on_error="skip")
    assert [(dialogue.id, dialogue.turns[0].answer) for dialogue in source] == [
        ("own:a.jpg", "A."),
        ("own:sub/c.png", "C."),
    ]
    assert source.report().rows == 3 + (name in ("metadata.csv", "metadata.jsonl"))  # a picture no line names
    assert len(source.errors) == source.report().rows - 2


def test_an_image_of_a_format_that_is_not_read_is_a_row_and_not_passed_over(folder):
    folder.write("own/phone.HEIC", b"\0\0\0\x18ftypheic")
    folder.write("own/phone.txt", "A cat.")
    source = PictureFolder(folder.root, "own", on_error="skip")
    assert source.report().rows == 4
    number = [dialogue.id for dialogue in source].index("own:phone.HEIC")
    with pytest.raises(ValueError, match=r"phone\.HEIC' cannot be read as an image: .* expected one of JPEG, PNG"):
        check_images(source[number])


def test_mistakes_about_the_folder(folder):
    with pytest.raises(ValueError, match="folder 'else' does not exist under the data root"):
        len(PictureFolder(folder.root, "else"))
    folder.write("own/captions.json", ["A."])
    with pytest.raises(ValueError, match=r'captions\.json: expected \{"a\.jpg": "A cat\.", \.\.\.\}, found list'):
        len(PictureFolder(folder.root, "own", captions="captions.json"))
    folder.write("empty/readme.txt", "")
    with pytest.raises(ValueError, match="pictures: there is no row; folder=empty"):
        len(PictureFolder(folder.root, "empty"))

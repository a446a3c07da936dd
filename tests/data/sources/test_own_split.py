"""Data of one's own: what is odd about them is said before anyone believes their figures."""

import json
import logging

import pytest

from visualchat.data.blend.own import OwnData
from visualchat.data.datamodule import VisualChatDataModule
from visualchat.data.sources import Messages, PictureFolder, Spreadsheet


@pytest.fixture
def tables(corpus):
    """Makes tables of numbered rows, each about an image of its own."""

    def make(**files: range) -> None:
        for name, numbers in files.items():
            rows = [f"{n}.jpg,What number is it?,It is {n}.\r\n" for n in numbers]
            corpus.write(f"{name}.csv", "image,question,answer\n" + "".join(rows).rstrip())
            for n in numbers:
                corpus.jpeg(f"{n}.jpg", n)

    return make


def test_a_validation_file_that_shares_rows_with_training_is_told(corpus, tables, processor, caplog):
    tables(train=range(25), test=range(20, 40), new=range(40, 50))
    table = Spreadsheet(corpus.root, ["train.csv"])
    assert OwnData(table, "new.csv").leak() == ""
    leaking = OwnData(table, "test.csv")
    assert [leaking.validation[row].turns[0].answer for row in leaking.trained_too] == [
        f"It is {n}." for n in range(20, 25)
    ]
    assert leaking.leak().startswith("5 of 20 validation dialogues also train, the first from test.csv, line 2: ")
    module = VisualChatDataModule.from_source(processor, table, "test.csv", batch_size=2)
    with caplog.at_level(logging.WARNING):
        module.prepare_data()
    assert leaking.leak() in caplog.text


def test_rows_of_two_files_that_the_share_parts_are_told(corpus, tables):
    """A row that stands in two files has two identities, of which one may train and the other validate."""
    tables(a=range(40), b=range(40))
    own = OwnData(Spreadsheet(corpus.root, ["a.csv", "b.csv"]), 0.3)
    trained = {dialogue.turns[0].answer for dialogue in own.train}
    both = [row for row, dialogue in enumerate(own.validation) if dialogue.turns[0].answer in trained]
    assert own.trained_too == both
    assert 0 < len(both) < len(own.validation)
    alone = OwnData(Spreadsheet(corpus.root, ["a.csv"]), 0.3)
    assert (alone.trained_too, alone.leak()) == ([], "")


def test_equal_names_and_captions_of_other_images_are_other_rows(corpus):
    for folder, shade in (("one", 10), ("two", 200)):
        corpus.jpeg(f"{folder}/a.jpg", shade)
        corpus.write(f"{folder}/a.txt", "A cat.")
    assert OwnData(PictureFolder(corpus.root, "one"), "two").leak() == ""


def test_a_placeholder_that_stays_text_is_noted(corpus):
    """`<image>` stands for an image only where a column brings one: a column of another name is a likely mistake."""
    said = [("human", "<image>What is it?"), ("gpt", "A cat.")]
    rows = [
        {"conversations": [{"from": who, "value": text} for who, text in said], "image_path": f"{n}.jpg"}
        for n in range(3)
    ]
    corpus.write("train.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    own = OwnData(Messages(corpus.root, ["train.jsonl"]), 0.4)
    assert own.notes() == ["messages: 3 rows with <image> as plain text: they have no column images"]

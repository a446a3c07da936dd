"""The table, the picture of the curves and the page of samples."""

import base64
import csv
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from visualchat.dialogue import Dialogue, Turn
from visualchat.evaluation.report import LEGEND, draw_curves, legend, metrics_table, samples_page


def rows_of(table):
    return list(zip(*(column.cells for column in table.columns), strict=True))


def test_one_row_a_metric_and_one_column_a_model():
    table = metrics_table(
        {
            "tuned": {
                "answer_loss/all": 1.23456,
                "token_accuracy/all": 0.875,
                "exact_match/all": 0.5,
                "exact_match/colour": 1.0,
                "exact_match/images_2": 0.1234,
                "unseen/exact_match/all": 0.75,
                "unseen/answer_loss/all": 2.0,
            },
            "blind": {"exact_match/all": 0.25, "exact_match/which_image": 0.0},
        },
    )
    assert legend(["tuned", "blind"]) == "tuned: the trained model; blind: the trained model without images"
    assert [column.header for column in table.columns] == ["shares in %", "tuned", "blind"]
    assert rows_of(table) == [
        ("answer loss, nats a token", "1.235", "-"),
        ("  unseen", "2.000", "-"),
        ("token accuracy", "87.5", "-"),
        ("exact match", "50.0", "25.0"),
        ("  unseen", "75.0", "-"),
        ("  colour", "100.0", "-"),
        ("  which image", "-", "0.0"),
        ("  images 2", "12.3", "-"),
    ]


def test_a_narrow_terminal_cuts_no_figure():
    columns = {name: {"reference_consistency/all": 1.0} for name in ("tuned", "free", "replaced", "permuted")}
    table = metrics_table(columns, {name: {"reference_consistency/all": (0.875, 1.0)} for name in columns})
    console = Console(width=50, file=io.StringIO())
    console.print(table)
    said = console.file.getvalue()
    assert "…" not in said
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]
    assert ["".join(parts) for parts in zip(*rows, strict=True)][1:] == ["100.0(87.5-100.0)"] * 4


def test_the_readme_has_the_headings_of_the_commands():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"| | {' | '.join(LEGEND)} |" in readme
    assert all(f"*{name.capitalize()}*" in readme or f"*{name}*" in readme for name in LEGEND)


def test_rows_are_all_then_parts_then_kinds_then_numbers_of_images():
    kinds = ["images_10", "yes_no", "images_2", "all", "count", "images_1", "images_of_cats"]
    names = [*(f"exact_match/{name}" for name in kinds), "unseen/exact_match/all", "seen/exact_match/all"]
    table = metrics_table({"model": dict.fromkeys(names, 0.0)})
    assert [row[0].strip() for row in rows_of(table)] == [
        "exact match",
        *("seen", "unseen"),
        *("count", "images of cats", "yes no"),
        *("images 1", "images 2", "images 10"),
    ]


STEPS = [
    {"step": 0, "train/loss": 5.0, "lr/projector": 1e-4, "lr/embedding": 1e-5},
    {"step": 0, "validation/loss": 4.5, "validation/exact_match": 0.0},
    {"step": 10, "train/loss": 2.0, "lr/projector": 2e-4, "lr/embedding": 2e-5},
    {"step": 10, "validation/loss": 2.5, "validation/exact_match": 0.4},
]


def write_metrics(path, steps):
    """As Lightning's logger does: one column for each metric, empty where a row has none."""
    names = list(dict.fromkeys(name for row in steps for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(steps)
    return path


def test_curves_show_loss_exact_match_and_learning_rate(tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    draw_curves(write_metrics(tmp_path / "metrics.csv", STEPS), tmp_path / "curves.png", "attention mmca")
    (figure,) = figures
    assert figure.get_suptitle() == "attention mmca"
    loss, match, rate = figure.axes
    assert [axes.get_title() for axes in figure.axes] == [
        "loss per answer token",
        "exact match, validation",
        "learning rate",
    ]
    assert {line.get_label(): line.get_xydata().tolist() for line in loss.lines} == {
        "training": [[0, 5.0], [10, 2.0]],
        "validation": [[0, 4.5], [10, 2.5]],
    }
    assert [line.get_xydata().tolist() for line in match.lines] == [[[0, 0.0], [10, 0.4]]]
    assert {line.get_label(): line.get_xydata().tolist() for line in rate.lines} == {
        "projector": [[0, 1e-4], [10, 2e-4]],
        "embedding": [[0, 1e-5], [10, 2e-5]],
    }


def test_curves_of_each_source(tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    steps = [
        {"step": 0, "train/loss": 2.0, "train/loss/words": 1.0, "train/loss/pictures": 3.0},
        {"step": 5, "train/loss": 1.0, "train/loss/words": 1.0},
        {"step": 5, "validation/exact_match": 0.5, "validation/exact_match/words": 0.25},
    ]
    draw_curves(write_metrics(tmp_path / "metrics.csv", steps), tmp_path / "curves.png", "")
    loss, match, _ = figures[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in loss.lines}
    assert lines["words"] == [[0, 1.0], [5, 1.0]]
    assert lines["pictures"] == [[0, 3.0]]
    assert {line.get_label(): line.get_ydata().tolist() for line in match.lines} == {"all": [0.5], "words": [0.25]}


@pytest.mark.parametrize("steps", [STEPS, STEPS[:1]], ids=["whole", "without validation"])
def test_the_picture_is_a_png_with_something_on_it(tmp_path, steps):
    draw_curves(write_metrics(tmp_path / "metrics.csv", steps), tmp_path / "curves.png", "attention mmca")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 2 * picture.height > 200
        assert all(third.std() > 0 for third in np.split(np.asarray(picture.convert("L")), 3, axis=1))


@pytest.mark.parametrize("steps", [[], [{"step": 0, "validation/loss": 4.5}], [{"step": 0, "train/loss": ""}]])
def test_without_a_training_loss_there_is_nothing_to_draw(tmp_path, steps):
    with pytest.raises(ValueError, match=r"^metrics\.csv holds no values of train/loss: nothing to draw$"):
        draw_curves(write_metrics(tmp_path / "metrics.csv", steps), tmp_path / "curves.png", "attention mmca")
    assert not (tmp_path / "curves.png").exists()


class Page(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the text inside each."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in ("meta", "img", "link"):
            self.open.append(element)

    def handle_endtag(self, tag):
        while self.open and self.open.pop()["tag"] != tag:
            pass

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def texts(self, **attributes):
        return [e["text"] for e in self.elements if attributes.items() <= e.items()]


EVIL = """<script>alert("1")</script> & '"> <img src=x onerror=alert(1)> <!-- </section>"""


def test_nothing_on_the_page_is_taken_for_html():
    def page(words):
        dialogues = [Dialogue((Turn((words,), f"true {words}", f"kind {words}"),), id=f"id {words}")]
        return samples_page(f"title {words}", dialogues, [[f"given {words}"]])

    harmless, evil = Page(page("words")), Page(page(EVIL))
    shape = [{**element, "text": None} for element in harmless.elements]
    assert [{**element, "text": None} for element in evil.elements] == shape
    for harmless_element, evil_element in zip(harmless.elements, evil.elements, strict=True):
        if harmless_element["tag"] != "style":
            assert evil_element["text"] == harmless_element["text"].replace("words", EVIL)
    assert "script" not in {element["tag"] for element in evil.elements}


def test_right_and_wrong_answers_are_marked():
    dialogues = [
        Dialogue((Turn.ask("One?", answer="Yes.", kind="colour"), Turn.ask("Two?", answer="No.")), id="first"),
        Dialogue((Turn.ask("Three?", answer="So."),), id="second"),
    ]
    page = Page(samples_page("Samples", dialogues, [["Yes.", "Yes."], [""]]))
    assert page.texts(tag="span", **{"class": "right"}) == ["Yes."]
    assert page.texts(tag="span", **{"class": "wrong"}) == ["Yes.", ""]
    assert page.texts(**{"class": "kind"}) == [
        "first 1 of 2 answers exact",
        "colour",
        "(true: No.)",
        "second 0 of 1 answers exact",
        "(true: So.)",
    ]
    assert page.texts(tag="section") == [
        "first 1 of 2 answers exactQuestion: One? colourAnswer: Yes.Question: Two?Answer: Yes. (true: No.)",
        "second 0 of 1 answers exactQuestion: Three?Answer:  (true: So.)",
    ]
    assert page.texts(id="score") == ["1 of 3 answers are exactly the true ones."]
    assert page.texts(tag="title") == page.texts(tag="h1") == ["Samples"]


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (3, 5, 3), dtype=np.uint8))


def test_images_of_every_form_are_in_the_page_and_numbered_through_the_dialogue(tmp_path):
    pictures = [noise(seed) for seed in range(4)]
    path = tmp_path / "a.png"
    pictures[1].save(path)
    buffer = io.BytesIO()
    pictures[2].save(buffer, "PNG")
    dialogues = [
        Dialogue((Turn(("Is", pictures[0], "like", path, "?"), "No."), Turn.ask("This?", [buffer.getvalue()], "No."))),
        Dialogue((Turn.ask("That?", [pictures[3]], "No."),)),
    ]
    page = Page(samples_page("Samples", dialogues, [["No.", "No."], ["No."]]))
    assert page.texts(tag="div") == [
        "Question: IsImage 1likeImage 2?",  # where they stand in the question
        "Question: Image 3This?",
        "Question: Image 1That?",
    ]
    assert page.texts(tag="figcaption") == ["Image 1", "Image 2", "Image 3", "Image 1"]
    shown = [element for element in page.elements if element["tag"] == "img"]
    assert [image["alt"] for image in shown] == ["Image 1", "Image 2", "Image 3", "Image 1"]
    for image, picture in zip(shown, pictures, strict=True):
        head, _, data = image["src"].partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as found:
            assert found.tobytes() == picture.tobytes()


def test_large_pictures_are_made_smaller_and_left_as_they_are():
    photo = Image.new("RGB", (3000, 2000))
    page = Page(samples_page("Samples", [Dialogue((Turn.ask("What?", [photo], "It."),))], [["It."]]))
    (image,) = (element for element in page.elements if element["tag"] == "img")
    with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as found:
        assert found.size == (512, 341)
    assert photo.size == (3000, 2000)


def test_a_page_stands_alone():
    """It loads nothing from elsewhere."""
    page = samples_page("Samples", [Dialogue((Turn.ask("What?", [noise(0)], "It."),))], [["It."]])
    assert page.startswith("<!doctype html><meta charset=utf-8>")
    assert {value for e in Page(page).elements for key, value in e.items() if key in ("src", "href")} == {
        element["src"] for element in Page(page).elements if element["tag"] == "img"
    }
    assert "url(" not in page
    assert "@import" not in page


def test_every_dialogue_and_turn_needs_an_answer():
    dialogues = [Dialogue((Turn.ask("One?", answer="Yes."), Turn.ask("Two?", answer="No.")))]
    for answers in ([], [["Yes."]], [["Yes.", "No.", "No."]]):
        with pytest.raises(ValueError, match="zip"):
            samples_page("Samples", dialogues, answers)


def test_a_missing_image_is_named():
    dialogues = [Dialogue((Turn.ask("What?", [Path("missing.png")], "It."),))]
    with pytest.raises(ValueError, match=r"'missing\.png' cannot be read as an image"):
        samples_page("Samples", dialogues, [["It."]])

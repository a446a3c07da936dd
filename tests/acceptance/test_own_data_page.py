"""docs/own-data.md by the letter: from an empty folder with 40 pictures and a CSV to a chat and figures about them."""

import csv
import re

import pytest
from commands import assert_finite, bash, metrics
from lines import ROOT, blocks

from visualchat.tiny.scenes import draw, random_scene

PAGE = (ROOT / "docs" / "own-data.md").read_text("utf-8")
ANSWERS = ("red", "blue")
"""Words of the tiny model; it knows few."""


def block(heading: str) -> list[str]:
    """The shell blocks of a section, as they stand."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return [text for language, text in blocks(section) if language == "bash"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which `mine` lies as the page says: 40 photographs of several sizes and a table of questions."""
    home = tmp_path_factory.mktemp("home")
    pictures = home / "mine" / "pictures"
    pictures.mkdir(parents=True)
    with (home / "mine" / "questions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "question", "answer"])
        for number in range(1, 41):
            name = f"pictures/{number:03}.jpg"
            draw(random_scene(number)).resize((200 + number, 300)).save(home / "mine" / name, quality=90)
            both = f"{name};pictures/001.jpg" if number % 10 == 0 else name
            rows.writerow([both, "What colour is it, if any?", ANSWERS[number % 2]])
    return home


@pytest.mark.slow
def test_the_page_ends_in_a_chat_and_figures_about_the_pictures(folder):
    first, then = block("A rehearsal on a CPU")
    trained = bash(folder, first)
    assert trained.code == 0, trained.out + trained.err
    assert "every row is sound" in trained.out
    assert "What colour" in trained.out
    assert "data=own" in trained.out

    run = folder / "outputs" / "rehearsal"
    figures = metrics(run)
    assert_finite(figures)
    assert figures["answer_loss/all"] < 0.5 * figures["untrained/answer_loss/all"]
    for name in ("answer_loss", "token_accuracy", "exact_match"):
        assert {f"{name}/all", f"blind/{name}/all", f"untrained/{name}/all"} <= figures.keys()
    assert not any("unseen" in name for name in figures), "figures of the tiny world"
    page = (run / "samples.html").read_text("utf-8")
    assert "What colour is it, if any?" in page
    assert "<img src=" in page
    assert (run / "curves.png").is_file()

    chat = "/image mine/pictures/001.jpg\nWhat colour is it, if any?\n/quit\n"
    scored = bash(folder, then, typed=chat)
    assert scored.code == 0, scored.out + scored.err
    again = metrics(folder / "outputs" / "scores")
    for name in ("answer_loss/all", "exact_match/all", "blind/answer_loss/all"):
        assert again[name] == pytest.approx(figures[name], rel=1e-4), name
    assert "40 dialogues, 40 answers" in scored.out
    assert re.search("|".join(ANSWERS), scored.out.rpartition("your next question")[2]), "an answer in the chat"


@pytest.mark.slow
def test_the_second_stage_starts_where_the_first_ended(folder):
    if not (folder / "outputs" / "rehearsal" / "model").is_dir():
        pytest.fail("the first stage, which the test before trains, did not end")
    (second,) = block("A second stage")
    done = bash(folder, second)
    assert done.code == 0, done.out + done.err
    before, after = metrics(folder / "outputs" / "rehearsal"), metrics(folder / "outputs" / "second")
    assert after["untrained/answer_loss/all"] == pytest.approx(before["answer_loss/all"], rel=1e-4)


@pytest.mark.parametrize("cells", re.findall(r"^\| ([^|]+) \| `(data=own[^`|]*)` \|$", PAGE, re.MULTILINE), ids=str)
def test_the_words_of_each_form_compose(cells):
    from composing import composed

    config = composed(["visualchat-train", *cells[1].split()])
    assert config.data.source._target_.startswith("visualchat.data.sources.")

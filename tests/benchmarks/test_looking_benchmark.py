"""Where trained models look: the questions are about the image that they are said to be about, and the page is made."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def benchmark():
    return import_module("looking")


def test_cases_are_about_the_image_that_their_question_names(benchmark):
    named = 0
    for case in benchmark.cases(40):
        assert 2 <= case.images == len(case.dialogue.images)
        turn = case.dialogue.turns[-1]
        assert turn.answer
        assert 0 <= case.image < case.images
        if found := re.search(r"image (\d)", turn.question):
            assert int(found[1]) == case.image + 1
            named += 1
    assert named > 20


def test_the_page_is_made_from_saved_models_and_keeps_its_discussion(
    benchmark, make_model, processor, tmp_path, monkeypatch
):
    folders = []
    for kind, seed in (("causal", 0), ("causal", 1), ("mmca", 0)):
        folder = tmp_path / f"{kind}{seed}"
        make_model(attention_kind=kind).save_pretrained(folder)
        processor.save_pretrained(folder)
        folders.append((kind, seed, folder))
    monkeypatch.setattr(benchmark, "runs", lambda folder: iter(folders))
    options = ["--dialogues", "6", "--output", str(tmp_path / "out")]
    benchmark.main(options)
    result = json.loads((tmp_path / "out" / "looking.json").read_text())
    count = sum(1 for _ in benchmark.cases(6))
    assert result["questions"] == count > 3
    assert {arm: set(seeds) for arm, seeds in result["arms"].items()} == {"causal": {"0", "1"}, "mmca": {"0"}}
    causal = result["arms"]["causal"]["0"]
    assert all(0 < share < 1 for share in (*causal["images"], *causal["asked"]))
    assert "images" not in result["arms"]["mmca"]["0"]  # a softmax of their own gives them what text has
    page = tmp_path / "out" / "looking.md"
    text = page.read_text()
    assert text.count("\n| causal |") == 2
    assert text.count("\n| mmca |") == 1
    page.write_text(text + "\n## Discussion\n\nThey look.\n")
    benchmark.main(options)
    assert page.read_text() == text + "\n## Discussion\n\nThey look.\n"


def test_without_runs_it_says_what_makes_them(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--folder", str(tmp_path)])
    assert "visualchat-study study=image_numbers" in capsys.readouterr().err

"""Figures of predictions equal those of the outcomes; intervals, groups and what cannot be read stand beside them."""

import json
import random
from dataclasses import replace

import pytest

from visualchat.evaluation.exact_match import Outcome, summarise
from visualchat.evaluation.pages import comparison_page, draw_accuracy, intervals, report_page, values
from visualchat.evaluation.predictions import Prediction
from visualchat.evaluation.scores import check_metrics, columns_of, figures, flat, table

DRAW = random.Random(0)


def prediction(number, **changes):
    plain = Prediction(
        column="tuned",
        mode="teacher_forced",
        part=f"part{number % 2}",
        dialogue=f"d{number // 3}",
        round=number % 3 + 1,
        kind=("count", "colour", "list")[number % 3],
        question="What <b>?",
        shown=(),
        images=number % 4,
        sent=number % 4,
        distance=None if number % 4 == 0 else number // 3 % 3,
        references=("B",),
        options=("cat", "dog"),
        about=(),
        tags={"size": "large" if number % 5 else "small"},
        answer=DRAW.choice(["A", "B", "C.", "perhaps <i>"]),
        ended="stop" if number % 7 else "length",
        exact=DRAW.random() < 0.6,
        tokens=3,
        right=DRAW.randrange(4),
        loss=DRAW.random(),
    )
    return replace(plain, **changes)


FORCED = [prediction(number) for number in range(60)]
FREE = [replace(p, mode="free_running", tokens=None, right=None, loss=None, exact=not p.exact) for p in FORCED]
BLIND = [replace(p, column="blind", exact=False) for p in FORCED]


def test_figures_equal_those_of_the_outcomes():
    outcomes = [Outcome(p.kind, p.images, p.exact, p.tokens, p.right, p.loss) for p in FORCED]
    expected = summarise(outcomes, ["list"])
    found = {f.name: f.value for f in figures(FORCED, [], ["list"])}
    assert {name: found[name] for name in expected} == expected
    for part in ("part0", "part1"):
        of = summarise([o for o, p in zip(outcomes, FORCED, strict=True) if p.part == part], ["list"])
        for name in ("exact_match/all", "answer_loss/all", "token_accuracy/all"):
            assert found[f"{part}/{name}"] == of[name]
    assert found["exact_match/distance_2"] == pytest.approx(
        sum(p.exact for p in FORCED if p.distance == 2 and p.kind != "list")
        / sum(p.distance == 2 and p.kind != "list" for p in FORCED)
    )
    assert {"exact_match/size_large", "exact_match/size_small"} <= found.keys()
    assert found["cut/all"] == sum(p.ended == "length" and p.kind != "list" for p in FORCED) / 40


def test_what_cannot_be_read_is_wrong_and_counted():
    by_name = {f.name: f for f in figures(FORCED, ["multiple_choice"], [])}
    found = by_name["multiple_choice/all"]
    assert found.questions == 60
    assert found.unreadable == sum(p.answer == "perhaps <i>" for p in FORCED) + sum(p.answer == "C." for p in FORCED), (
        "there is no option C"
    )
    assert found.value == sum(p.answer == "B" for p in FORCED) / 60
    assert found.low < found.value < found.high
    assert by_name["exact_match/all"].unreadable == 0


def test_columns_and_the_files_that_hold_their_figures():
    columns = columns_of([*FORCED, *FREE, *BLIND])
    assert [*columns] == ["tuned", "free", "blind"]
    scored = {name: figures(of, ["perplexity"], []) for name, of in columns.items()}
    metrics = flat(scored)
    assert metrics["free/exact_match/all"] == 1 - metrics["exact_match/all"]
    assert metrics["blind/exact_match/all"] == 0.0
    assert "perplexity/all" in metrics
    assert not any(name.startswith(("free/answer_loss", "free/perplexity")) for name in metrics)
    rows = table(scored)
    assert {row["column"] for row in rows} == {"tuned", "free", "blind"}
    (row,) = (row for row in rows if row["column"] == "tuned" and row["name"] == "exact_match/all")
    assert (row["value"], row["questions"]) == (metrics["exact_match/all"], 60)
    assert intervals(scored)["tuned"]["exact_match/all"] == (row["low"], row["high"])
    assert json.loads(json.dumps(rows)) == rows


def test_mistakes_are_named():
    check_metrics(["multiple_choice", "bleu_4"])
    with pytest.raises(ValueError, match="unknown metric acuracy in evaluation"):
        check_metrics(["acuracy"])
    with pytest.raises(ValueError, match=r"part 'part1' .* has no answer of a kind that counts \(apart: \['x'\]\)"):
        figures([replace(p, kind="x" if p.part == "part1" else "") for p in FORCED], [], ["x"])


def test_the_pages_show_all_answers_as_text(tmp_path):
    columns = columns_of([*FORCED, *FREE, *BLIND])
    scored = {name: figures(of, [], []) for name, of in columns.items()}
    draw_accuracy(scored, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size > 1000
    page = report_page("A <title>", scored, columns, 2, "../images/")
    assert page.count("<section>") == 4, "two dialogues of each of two parts"
    assert "What &lt;b&gt;?" in page
    assert "<b>" not in page
    assert "<i>" not in page
    exact = values(scored)["tuned"]["exact_match/all"]
    assert f"{100 * exact:.1f} (" in page
    pairs = [(p, q, float(p.exact), float(q.exact)) for p, q in zip(FORCED, BLIND, strict=True)]
    compared = comparison_page("one and two", ["of all"], pairs, ("one", "two"), "../one/")
    wrong = sum(not p.exact for p in FORCED)
    assert f"only one right: {60 - wrong}" in compared
    assert f"neither right: {wrong}" in compared
    assert compared.count("<section>") == 60

import dataclasses

import numpy as np
import pytest

from visualchat.evaluation.statistics import crossed_means, mean_interval
from visualchat.studies import kept as keeping
from visualchat.studies.figure import draw
from visualchat.studies.findings import findings, rows
from visualchat.studies.kept import Kept, Question, Run
from visualchat.studies.page import commits, page
from visualchat.studies.plan import plan_of

PLAN = plan_of(
    {
        "name": "mine",
        "title": "A study",
        "question": "Which?",
        "factors": {"kind": {"a": [], "b": ["x=1"], "c": []}},
        "seeds": [0, 1, 2],
        "apart": ["list"],
        "claims": [
            {"factor": "kind", "level": "b", "against": "a", "expect": "better"},
            {"factor": "kind", "level": "b", "against": "a", "expect": "worse"},
            {"factor": "kind", "level": "c", "against": "a", "expect": "level", "margin": 3},
            {"factor": "kind", "level": "b", "against": "a", "expect": "level", "margin": 3},
            {"factor": "kind", "level": "c", "against": "a", "expect": "better"},
            {"factor": "kind", "level": "b", "against": "a", "expect": "worse", "kinds": ["list"]},
        ],
    }
)
QUESTIONS = [
    Question("seen", f"d{number // 4}", number % 4 + 1, "list" if number % 4 == 3 else "one", 1 + number % 3, "?", "!")
    for number in range(2000)
]


def answers(share: float, seed: int, like: str | None = None) -> str:
    """So many right, or the same as others' but for a few."""
    generator = np.random.default_rng(seed)
    if like is None:
        return "".join("01"[int(value)] for value in generator.random(len(QUESTIONS)) < share)
    changed = generator.random(len(QUESTIONS)) < 0.01
    return "".join("10"[int(one)] if change else one for one, change in zip(like, changed, strict=True))


def made() -> Kept:
    kept = Kept()
    for seed in PLAN.seeds:
        base = answers(0.5, seed)
        for arm, right in (("a", base), ("b", answers(0.65, 10 + seed)), ("c", answers(0, 20 + seed, like=base))):
            words = tuple("!" if one == "1" else "" for one in right)
            kept.add(
                Run((arm,), seed, PLAN.settings((arm,)), (), {"commit": "0123456789"}, 60.0, right, words), QUESTIONS
            )
    return kept


def test_claims_are_confirmed_refuted_or_left_open_as_the_answers_were_made():
    found = findings(PLAN, made())
    assert [finding.verdict for finding in found] == ["confirmed", "refuted", "confirmed", "refuted", "open", "refuted"]
    better = found[0]
    assert better.low < better.difference < better.high
    assert better.low < 15 < better.high
    assert better.questions == 1500  # the lists are apart
    assert found[5].questions == 500
    assert better.seeds == (0, 1, 2)
    assert found[4].p > 0.05


def test_figures_are_of_the_questions_of_their_group():
    kept = made()
    row = rows(PLAN, kept)[0]
    right = np.array([[int(one) for one in run.right] for run in kept.runs if run.arm == ("a",)])
    kinds = np.array([question.kind for question in QUESTIONS])
    images = np.array([question.images for question in QUESTIONS])
    assert list(row.cells) == ["all", "one", "list", "1 image", "2 images", "3 images"]
    expected = {"all": kinds == "one", "one": kinds == "one", "list": kinds == "list"}
    expected["2 images"] = (kinds == "one") & (images == 2)
    for name, chosen in expected.items():
        assert row.cells[name].value == pytest.approx(100 * right[:, chosen].mean())
        assert row.cells[name].low < row.cells[name].value < row.cells[name].high
        assert row.cells[name].questions == chosen.sum()


def test_groups_of_kinds_stand_beside_all_and_a_claim_may_name_one():
    kept = made()
    claim = dataclasses.replace(PLAN.claims[-1], kinds=("both",))
    plan = dataclasses.replace(PLAN, groups={"both": ("one", "list"), "none": ("other",)}, claims=(claim,))
    table = rows(plan, kept)
    assert list(table[0].cells) == ["all", "both", "one", "list", "1 image", "2 images", "3 images"]
    assert table[1].cells["both"].value == pytest.approx(
        100 * np.mean([np.mean(_right(kept, "b", s)) for s in range(3)])
    )
    assert findings(plan, kept)[0].questions == len(QUESTIONS)
    text = page(plan, kept, table, findings(plan, kept), "mine.png", "")
    heads = [line for line in text.splitlines() if line.startswith("| kind |")]
    assert heads == [
        "| kind | all | both | seeds |",
        "| kind | one | list |",
        "| kind | 1 image | 2 images | 3 images |",
    ]


def _right(kept: Kept, arm: str, seed: int) -> list[int]:
    return [int(one) for run in kept.runs if (run.arm, run.seed) == ((arm,), seed) for one in run.right]


def test_draws_over_seeds_and_dialogues_have_the_spread_of_both():
    generator = np.random.default_rng(0)
    clusters = [f"d{number // 5}" for number in range(1000)]
    one = (generator.random((1, 1000)) < 0.5).astype(float)
    low, high = np.quantile(crossed_means(one, clusters), [0.025, 0.975])
    assert (low, high) == pytest.approx(mean_interval(list(one[0]), clusters, resamples=4000), abs=0.004)
    seeds = np.repeat(np.array([[0.2], [0.4], [0.6], [0.8]]), 1000, axis=1)  # only seeds differ
    assert crossed_means(seeds, clusters).std() == pytest.approx(np.std([0.2, 0.4, 0.6, 0.8]) / 2, rel=0.05)
    with pytest.raises(ValueError, match="a cluster for each question"):
        crossed_means(one, clusters[:-1])


def test_what_is_kept_comes_back_and_damage_is_named(tmp_path):
    file = tmp_path / "mine.jsonl.xz"
    assert keeping.read(file).runs == []
    kept = made()
    keeping.write(kept, file)
    again = keeping.read(file)
    assert again.questions == kept.questions
    assert again.runs == sorted(kept.runs, key=lambda run: (run.arm, run.seed))
    assert findings(PLAN, again) == findings(PLAN, kept)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"mine\.jsonl\.xz is damaged"):
        keeping.read(file)
    kept.runs[0] = dataclasses.replace(kept.runs[0], right="1")
    keeping.write(kept, file)
    with pytest.raises(ValueError, match="a, seed 0, lacks answers"):
        keeping.read(file)


def test_a_run_of_other_questions_is_not_put_beside_the_others():
    kept = made()
    other = dataclasses.replace(kept.runs[0], seed=7)
    with pytest.raises(ValueError, match="a, seed 7: its 1999 questions are not the 2000 of the runs that are kept"):
        kept.add(other, QUESTIONS[1:])
    again = dataclasses.replace(kept.runs[0], seconds=1.0)
    kept.add(again, QUESTIONS)
    assert sorted(run.seconds for run in kept.runs if run.arm == ("a",)) == [1.0, 60.0, 60.0]


def test_the_page_names_the_commits_and_marks_those_with_changes():
    kept = made()
    assert commits(kept) == "012345678"
    kept.runs[0] = dataclasses.replace(kept.runs[0], code={"commit": "abcdef0123", "dirty": True})
    assert commits(kept) == "012345678, abcdef012+ (+: with changes)"


def test_the_page_shows_claims_and_figures_and_keeps_its_discussion(tmp_path):
    kept = made()
    table, found = rows(PLAN, kept), findings(PLAN, kept)
    first = page(PLAN, kept, table, found, "mine.png", "")
    assert "3 arms, seeds 0, 1, 2: 9 of 9 runs so far; each answers the same 2000 questions of 500 dialogues" in first
    line = next(line for line in first.splitlines() if line.startswith("| b is better than a"))
    assert f"{found[0].difference:+.1f}" in line
    assert "**confirmed**" in line
    assert f"| a | {table[0].cells['all'].value:.1f} (" in first
    assert "Trained at 012345678;" in first
    before = first + "\n## Discussion\n\nIt was so.\n"
    assert page(PLAN, kept, table, found, "mine.png", before) == before
    empty = page(PLAN, Kept(), [], [], "mine.png", "")
    assert "0 of 9 runs so far" in empty
    assert "not tried yet" in empty
    draw(PLAN, table, tmp_path / "mine.png")
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")

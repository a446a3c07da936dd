"""Every benchmark on its twin: who sees the images is always right, words alone are worth chance."""

from collections import Counter, defaultdict

import pytest
from benchmark_twins import TWINS, shades_so_far

from visualchat.data.sources import benchmarks
from visualchat.evaluation.metrics import CORPUS, METRICS
from visualchat.evaluation.predictions import Prediction, questions


def predicted(name: str, corpus, answer) -> list[Prediction]:
    """The twin's questions with what `answer(turn, shades so far)` says."""
    TWINS[name].write(corpus)
    told = []
    for dialogue in TWINS[name].reader(corpus.root):
        for number, (facts, turn) in enumerate(zip(questions(dialogue), dialogue.turns, strict=True)):
            said = answer(turn, shades_so_far(dialogue, number))
            told.append(
                Prediction("tuned", "free_running", name, **facts, shown=(), answer=said, ended="stop", exact=False)
            )
    return told


def test_every_reader_has_a_twin():
    assert {twin.reader.__name__ for twin in TWINS.values()} - {"<lambda>"} | {"SparklesEval"} == {*benchmarks.__all__}


@pytest.mark.parametrize("name", TWINS)
def test_who_sees_is_right_and_words_alone_are_worth_chance(name, corpus):
    twin = TWINS[name]
    told = predicted(name, corpus, twin.seen)
    assert len(told) == twin.questions
    assert [score.value for score in METRICS["accuracy"](told)] == [1.0] * len(told)
    by_words = defaultdict(Counter)
    for prediction in told:
        by_words[prediction.question][prediction.references[0]] += 1
    best = sum(max(answers.values()) for answers in by_words.values()) / len(told)
    assert best == pytest.approx(twin.chance)
    assert twin.reader(corpus.root).report().rejected == {}


def test_groups_are_pairs_sentences_and_tasks(corpus):
    told = predicted("muirbench", corpus, TWINS["muirbench"].seen)
    assert Counter(prediction.tags.get("group") for prediction in told) == {
        "0-4": 2, "1-5": 2, "2-6": 2, "3-7": 2, None: 8,
    }  # fmt: skip
    assert CORPUS["groups_right"](told) == 1
    told = predicted("nlvr2", corpus, lambda turn, shades: "yes")
    assert {prediction.tags["group"] for prediction in told} == {"test1-7-0"}
    assert [score.value for score in METRICS["accuracy"](told)] == [1, 0, 1, 0]
    assert CORPUS["groups_right"](told) == 0
    told = predicted("vischainbench", corpus, lambda turn, shades: "A")
    assert CORPUS["rounds_right"](told) == 1 / 6  # of images alone: the first; of two steps, one is always wrong
    assert sum(score.value for score in METRICS["accuracy"](told)) == 3


def test_all_that_people_said_of_an_image_is_accepted(corpus):
    told = predicted("vqav2", corpus, lambda turn, shades: "dull")
    assert [score.value for score in METRICS["vqa_accuracy"](told)] == pytest.approx([0.9] * 3)
    assert [len(prediction.references) for prediction in told] == [10] * 3
    told = predicted("coco_karpathy", corpus, lambda turn, shades: f"A {TWINS['mmdu'].seen(turn, shades)} thing, 3")
    assert [len(prediction.references) for prediction in told] == [5] * 3
    assert all(1 < score.value < 10 for score in METRICS["cider_d"](told))


def test_a_list_is_scored_by_its_names(corpus):
    told = predicted("mimic", corpus, lambda turn, shades: "White, grey, and black." if turn.kind == "listing" else "1")
    lists = [p for p in told if p.kind == "listing"]
    assert [score.value for score in METRICS["list_f1"](lists)] == pytest.approx([0.8] * 3)
    right = predicted("mimic", corpus, TWINS["mimic"].seen)
    assert [score.value for score in METRICS["list_f1"](p for p in right if p.kind == "listing")] == [1.0] * 3
    assert METRICS["list_f1"]([told[0].__class__(**{**told[0].__dict__, "answer": " . "})])[0].parsed is None

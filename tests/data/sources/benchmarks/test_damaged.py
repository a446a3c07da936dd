"""Rows of benchmarks with what goes wrong in published files: each is named and counted, none is scored wrongly."""

import pytest
from benchmark_twins import (
    TWINS,
    blink_row,
    column,
    mantis_row,
    mimic_rows,
    mmdu_row,
    muirbench_row,
    parquet,
    science_row,
    seed_row,
    vischain_images,
    vischain_text,
    write_mirb,
    write_mmdu,
    write_science,
    write_seed,
    write_vischain,
    write_vqa,
)
from corpora import jpeg

from visualchat.data.sources.benchmarks import Blink, MantisEval, MuirBench, Nlvr2, Pope, VisChainBench, VqaV2


def rejected(name: str, corpus) -> dict[str, int]:
    """Why rows are not used, with policy skip; the details must be fit to print."""
    source = TWINS[name].reader(corpus.root)
    object.__setattr__(source, "on_error", "skip")
    report = source.report()
    assert all(str(error).count("\n") == 0 for error in source.errors)
    return {**report.rejected, **{f"left out: {reason}": n for reason, n in report.left_out.items()}}


def test_muirbench(corpus):
    wrong = [
        ({"answer": "E"}, "no answer"),
        ({"answer": "None"}, "no answer"),
        ({"answer": None}, "no answer"),
        ({"options": ["only one"]}, "wrong form"),
        ({"image_list": [column(1), column(2)]}, "placeholders and images differ"),
        ({"image_list": [{"bytes": None, "path": "a.png"}] * 3}, "no image"),
        ({"question": " "}, "empty question"),
    ]
    rows = [muirbench_row(8 * n, **{"idx": f"{n}", **fields}) for n, (fields, _) in enumerate(wrong)]
    parquet(corpus, "MUIRBENCH/data/test-00000-of-00002.parquet", [*rows, muirbench_row(20)])
    parquet(corpus, "MUIRBENCH/data/test-00001-of-00002.parquet", [muirbench_row(21)])
    found = rejected("muirbench", corpus)
    assert found == {reason: [r for _, r in wrong].count(reason) for _, reason in wrong}
    sound = MuirBench(corpus.root, on_error="skip")
    assert [dialogue.id.rpartition(":")[2] for dialogue in sound] == ["20", "21"]
    with pytest.raises(ValueError, match=r"muirbench: 7 of 9 rows are damaged; on_error=skip leaves them out"):
        len(MuirBench(corpus.root))


def test_blink_hides_the_answers_of_its_test_split(corpus):
    rows = [blink_row(0), blink_row(1, idx="1", answer="hidden"), blink_row(2, idx="2", choices=None)]
    rows += [blink_row(0, idx="3", image_2=None, image_3=None)]  # images that are not there leave no gap
    parquet(corpus, "BLINK/Jigsaw/val-00000-of-00001.parquet", rows)
    parquet(corpus, "BLINK/Jigsaw/test-00000-of-00001.parquet", [blink_row(5, answer="hidden")])
    assert rejected("blink", corpus) == {"no answer": 1, "wrong form": 1}
    assert [len(dialogue.images) for dialogue in Blink(corpus.root, on_error="skip")] == [3, 1]
    with pytest.raises(ValueError, match=r"folder 'BLINK/Counting' does not exist under the data root"):
        len(Blink(corpus.root, tasks=["Counting"]))
    (corpus.root / "BLINK" / "Jigsaw" / "val-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"blink: expected folders with files like val-00000-of-00001.parquet"):
        len(Blink(corpus.root))


def test_mantis_eval(corpus):
    odd = [
        mantis_row(0, answer="(B)"),  # a letter in brackets is that letter
        mantis_row(2, id="2", options=["one", "two", "three"]),  # options without letters get them
        mantis_row(1, id="3", question_type="essay"),
        mantis_row(1, id="4", answer=""),
        mantis_row(1, id="5", question="What is shown?"),  # without a place for the image it comes first
    ]
    parquet(corpus, "Mantis-Eval/mantis_eval/test-00000-of-00001.parquet", odd)
    assert rejected("mantis_eval", corpus) == {"wrong form": 1, "empty answer": 1}
    first, second, third = MantisEval(corpus.root, on_error="skip")
    assert first.turns[0].answer == "B"
    assert second.turns[0].expected.options == ("one", "two", "three")
    assert second.turns[0].question.endswith("?\nA. one\nB. two\nC. three\nAnswer with the letter of one option.")
    assert not isinstance(third.turns[0].content[0], str)
    (corpus.root / "Mantis-Eval" / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected files like test-00000-of-00001.parquet under the data root"):
        len(MantisEval(corpus.root, folder="Mantis-Eval/empty"))


def test_nlvr2(corpus):
    corpus.write("nlvr2/test1/test1-0-0-img0.png", jpeg(9, "PNG"))
    corpus.write("nlvr2/test1/test1-0-0-img1.png", jpeg(9, "PNG"))
    good = {"identifier": "test1-0-0-0", "sentence": "Both are dark.", "label": "True"}
    wrong = [
        {"identifier": "test1-0-1-0"}, {"identifier": "test1-0"}, {"label": "Maybe"}, {"sentence": ""}, {"label": None},
        {"identifier": "../../x-0-0-0"},
    ]  # fmt: skip
    rows = [{**good, "identifier": f"test1-0-0-{n}", **fields} for n, fields in enumerate(wrong)]
    corpus.lines("nlvr2/data/test1.json", [good, {**good, "identifier": "test1-0-0-9", "label": False}, *rows, "{\n"])
    assert rejected("nlvr2", corpus) == {
        "missing image file": 1, "wrong form": 1, "no answer": 2, "empty question": 1, "broken JSON": 1,
        "path outside the data root": 1,
    }  # fmt: skip
    assert [dialogue.turns[0].answer for dialogue in Nlvr2(corpus.root, on_error="skip")] == ["yes", "no"]


def test_seed_bench_2(corpus):
    wrong = [{"answer": "E"}, {"data_id": ["gone.png"] * 3}, {"choice_d": None}, {"data_id": ["40.png", 3]},
             {"data_id": "../../x.png"}]  # fmt: skip
    rows = [seed_row(0, **{"question_id": f"{n}", **fields}) for n, fields in enumerate(wrong)]
    write_seed(corpus, [*rows, seed_row(9), seed_row(10, data_type="Single Image", data_id="40.png")])
    assert rejected("seed_bench_2", corpus) == {
        "no answer": 1, "missing image file": 1, "wrong form": 2, "path outside the data root": 1,
        "left out: another split": 1,
    }  # fmt: skip


def test_mirb(corpus):
    row = {"questions": "How many?", "answers": 3, "images": ["Images/40.jpg"]}
    write_mirb(corpus, [row, {**row, "answers": "B"}, {**row, "answers": ["3"]}, {**row, "images": ["x.jpg"]}, 5])
    assert rejected("mirb", corpus) == {"wrong form": 2, "missing image file": 1}
    asked = [dialogue.turns[0].question for dialogue in TWINS["mirb"].reader(corpus.root).__class__(
        corpus.root, tasks=["count"], on_error="skip")]  # fmt: skip
    assert [question.split("\n")[1] for question in asked] == [
        "Answer with a word or a short phrase.",
        "Answer with the letter of one option.",
    ]


def test_mmdu(corpus):
    rows = [mmdu_row(1, image=[name] * 3) for name in ("./pics/40.jpg", "./pics/gone.jpg", "../../etc/passwd")]
    rows += [mmdu_row(2, image=["./pics/40.jpg"]), mmdu_row(2, conversations=mmdu_row(2)["conversations"][:-1])]
    write_mmdu(corpus, rows)
    assert rejected("mmdu", corpus) == {
        "placeholders and images differ": 1, "missing image file": 1, "no answer": 1, "path outside the data root": 1,
    }  # fmt: skip


def test_vischainbench(corpus):
    two_right = vischain_text(0)
    two_right["questions"][1]["choices"] = [{"image": "40.jpg", "correct": True}] * 2
    gone = vischain_images(0)
    gone["steps"][0]["options"][0]["image"] = "gone.jpg"
    letter = vischain_images(0)
    letter["steps"][0]["correct_option"] = "Z"
    write_vischain(corpus, {
        "a": two_right, "b": gone, "c": letter, "d": vischain_text(0, initial_scene_description=None),
        "e": {"task": "x", "question_start_label": 2, "steps": []}, "f": [1], "g": vischain_text(0, questions=[]),
    })  # fmt: skip
    assert rejected("vischainbench", corpus) == {"no answer": 2, "missing image file": 1, "wrong form": 3}
    source = VisChainBench(corpus.root, on_error="skip")
    assert [dialogue.id for dialogue in source] == ["VisChainBench/d"]
    assert any("in-context tasks (question_start_label) are not read" in str(error) for error in source.errors)


def test_pope_and_scienceqa(corpus):
    corpus.jpeg("coco/val2014/a.jpg", 40)
    row = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "No"}
    corpus.lines("POPE/x.json", [row, {**row, "label": "none"}, {**row, "image": None}, {**row, "text": ""}])
    source = Pope(corpus.root, files=["POPE/x.json"], on_error="skip")
    assert source.report().rejected == {"no answer": 1, "no image": 1, "empty question": 1}
    wrong = {"0": science_row(0), "1": science_row(1, answer=3), "2": science_row(2, answer=True),
             "3": science_row(0, choices=["one"]), "4": science_row(0, image="gone.png"),
             "5": science_row(0, image=None), "6": science_row(0, split="val")}  # fmt: skip
    write_science(corpus, wrong)
    assert rejected("scienceqa", corpus) == {
        "no answer": 2, "wrong form": 1, "missing image file": 1, "left out: no image": 1, "left out: another split": 1,
    }  # fmt: skip


def test_vqav2_answers_that_changed_are_read_again(corpus):
    write_vqa(corpus)
    before = VqaV2(corpus.root).digest()
    said = [{"question_id": 100 + n, "answers": [{"answer": "a"}] * (n != 2)} for n in (0, 2, 3, 4)]
    write_vqa(corpus, annotations=said)
    changed = VqaV2(corpus.root, on_error="skip")
    assert (changed.report().rejected, len(changed)) == ({"no answer": 2}, 1)
    write_vqa(corpus, annotations=[{**row, "answers": [{"answer": "b"}]} for row in said])
    assert len({before, changed.digest(), VqaV2(corpus.root, on_error="skip").digest()}) == 3
    asked = [{"question_id": id, "image_id": image, "question": "?"} for id, image in ((103, "x"), (104, 7))]
    write_vqa(corpus, asked, said)
    assert rejected("vqav2", corpus) == {"unknown image id": 1, "missing image file": 1}


def test_mimic(corpus):
    rows = mimic_rows("counting")
    wrong = [{**rows[0], "idx": 7, "gt": "many"}, {**rows[1], "idx": 8, "images": [{"bytes": None, "path": "x"}]}]
    for task in ("listing", "common", "oddone"):
        parquet(corpus, f"MIMIC/{task}/test-00000-of-00001.parquet", mimic_rows(task))
    parquet(corpus, "MIMIC/counting/test-00000-of-00001.parquet", [*rows, *wrong])
    assert rejected("mimic", corpus) == {"no answer": 1, "no image": 1}

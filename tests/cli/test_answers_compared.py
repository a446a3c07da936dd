"""`visualchat-evaluate answers=`: two models of ours and a foreign one beside each other, typed as a person would."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from visualchat.cli.answers import compare_answers, named_files
from visualchat.cli.config import CONF
from visualchat.tiny.scenes import draw, random_scene

COUNT = 4


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Conversations of two rounds about an image and then a second, the first round's true answer known."""
    monkeypatch.chdir(tmp_path)
    lines = []
    for number in range(COUNT):
        names = [f"{number}-{k}.png" for k in range(2)]
        for k, name in enumerate(names):
            draw(random_scene(2 * number + k)).save(tmp_path / name)
        images = [{"type": "image", "path": name} for name in names]
        messages = [
            {"role": "user", "content": [images[0], {"type": "text", "text": "What <b>colour</b>?"}]},
            {"role": "assistant", "content": f"It is red {number}."},
            {"role": "user", "content": [images[1], {"type": "text", "text": "And now?"}]},
        ]
        lines.append(json.dumps({"id": f"c{number}", "messages": messages}))
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    return tmp_path


def foreign(folder: Path, name: str, first: str, second: str, count: int = COUNT) -> None:
    rows = [
        {"id": f"c{n}", "round": k, "answer": said.format(n)}
        for n in range(count)
        for k, said in ((1, first), (2, second))
    ]
    (folder / name).write_text("\n".join(map(json.dumps, rows)))


def compared(folder: Path, *overrides: str) -> dict:
    with initialize_config_dir(CONF, version_base="1.3"):
        compare_answers(compose("evaluate", ["input=q.jsonl", *overrides]), folder)
    return json.loads((folder / "side_by_side.json").read_text())


def test_a_page_and_figures(folder, capsys):
    foreign(folder, "good.jsonl", "It is red {}.", "Image 2 is blue.")
    foreign(folder, "bad.jsonl", "It is <i>green</i>.", "Image 3 is blue.")
    left = compared(folder, "answers=[good.jsonl,bad.jsonl]")
    rouge = {one["model"]: one for one in left["figures"] if one["metric"] == "rouge_l"}
    assert (rouge["good"]["value"], rouge["good"]["questions"], rouge["good"]["difference"]) == (1.0, COUNT, None)
    assert rouge["bad"]["difference"] == pytest.approx(rouge["bad"]["value"] - 1)
    assert rouge["bad"]["between"][1] < 0
    consistent = {one["model"]: one["value"] for one in left["figures"] if one["metric"] == "reference_consistency"}
    assert consistent == {"good": 1.0, "bad": 0.5}
    page = (folder / "side_by_side.html").read_text()
    HTMLParser().feed(page)
    assert "<b>" not in page
    assert "<i>" not in page
    assert page.count("<section>") == COUNT
    assert page.count("<img ") == 2 * COUNT
    assert page.count("speaks of Image 3: 2 sent") == COUNT
    assert page.count('href="#q') == COUNT
    assert f"{COUNT} of them have no true answer" in capsys.readouterr().out
    sources = {part.partition('"')[0] for part in page.split('src="')[1:]}
    assert all((folder / source).is_file() for source in sources)


def test_a_question_that_one_lacks_is_an_error_or_left_out(folder):
    foreign(folder, "one.jsonl", "Red.", "Blue.")
    foreign(folder, "two.jsonl", "Red.", "Blue.", COUNT - 1)
    with pytest.raises(
        ValueError, match=r"two lacks 2 of 8 answers that others have, the first: round 1 of 'q.jsonl:c3'"
    ):
        compared(folder, "answers=[one.jsonl,two.jsonl]")
    left = compared(folder, "answers=[one.jsonl,two.jsonl]", "on_error=skip")
    assert left["notes"][:2] == [
        "6 questions of 3 conversations, answered by all of one, two",
        "two lacks 2 answers that others have: left out",
    ]
    assert (folder / "side_by_side.html").read_text().count("the same)") == 2 * (COUNT - 1)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["answers=[one.jsonl]"], "compares models: name two files or more"),
        (["answers=[one.jsonl,one.jsonl]"], r"two files are called one; name them: answers=\{one: FILE, other: FILE\}"),
        (["answers=[one.jsonl,two.jsonl]", "evaluation.metrics=[bleu_4]"], "is not of single answers"),
        (["answers=[one.jsonl,two.jsonl]", "input=null"], "needs input=FILE"),
        (["answers=[one.jsonl,gone.jsonl]"], "answers=gone.jsonl: there is no such file"),
    ],
)
def test_mistakes_are_named(folder, overrides, complaint):
    for name in ("one", "two"):
        foreign(folder, f"{name}.jsonl", "Red.", "Blue.")
    with pytest.raises(ValueError, match=complaint):
        compared(folder, *overrides)


def test_models_may_be_named():
    assert named_files({"ours": "a/x.jsonl", "theirs": "b/x.jsonl"}) == {
        "ours": Path("a/x.jsonl"),
        "theirs": Path("b/x.jsonl"),
    }


@pytest.mark.slow
def test_two_kinds_of_ours_and_a_foreign_file(folder, make_model, processor):
    """Answered by visualchat-generate, compared by visualchat-evaluate, both from the command line."""
    for kind in ("causal", "mmca"):
        make_model(attention_kind=kind).save_pretrained(folder / kind / "model")
        processor.save_pretrained(folder / kind / "model")
    tools = Path(sys.executable).parent
    models = f"folder=[{folder}/causal/model,{folder}/mmca/model]"
    lines = [
        [
            tools / "visualchat-generate",
            "input=q.jsonl",
            models,
            "rounds=all",
            "max_new_tokens=8",
            "hydra.run.dir=made",
        ],
        [
            *(tools / "visualchat-evaluate", "input=q.jsonl", "hydra.run.dir=both"),
            "answers={causal: made/answers/causal.jsonl, mmca: made/answers/mmca.jsonl, foreign: foreign.jsonl}",
            "evaluation.metrics=[rouge_l,cider_d]",
        ],
    ]
    foreign(folder, "foreign.jsonl", "It is red {}.", "The other image is blue.")
    for line in lines:
        done = subprocess.run(list(map(str, line)), cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "8 questions of 4 conversations, answered by all of causal, mmca, foreign" in done.stdout
    figures = json.loads((folder / "both/side_by_side.json").read_text())["figures"]
    assert [(one["metric"], one["model"]) for one in figures] == [
        (metric, model)
        for metric in ("rouge_l", "cider_d", "reference_consistency")
        for model in ("causal", "mmca", "foreign")
    ]
    made = [json.loads(line) for line in (folder / "made/answers/mmca.jsonl").read_text().splitlines()]
    page = (folder / "both/side_by_side.html").read_text()
    assert page.count("mmca:</span>") == 2 * len(made) == 2 * COUNT

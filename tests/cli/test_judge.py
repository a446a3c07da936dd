"""visualchat-judge: MMDU's and SparklesEval's protocols and pairs, with a judge that stands in for a real one."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from visualchat.cli.config import CONF
from visualchat.cli.judge import judge, what_to_ask
from visualchat.evaluation.judging.protocols import MMDU, OVERALL
from visualchat.evaluation.predictions import Prediction, to_line

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation" / "judging"))
from stand_in import judge as stand_in

ROOT = Path(__file__).parents[2]


def evaluation(folder: Path, part: str, answer, captions=("a red square", "a blue circle")) -> Path:
    """The folder of an evaluation of three dialogues of two rounds, one image each round."""
    folder.mkdir(parents=True)
    (folder / "images").mkdir()
    lines = []
    for number in range(3):
        for place in (1, 2):
            name = f"images/{number}{place}.png"
            (folder / name).write_bytes(b"picture " + name.encode())
            facts = {"dialogue": f"d{number}", "round": place, "kind": "", "question": f"Question {number}.{place}?"}
            facts |= {
                "shown": (name,),
                "images": 2,
                "sent": place,
                "distance": 0,
                "references": (f"truth {number}.{place}",),
            }
            facts |= {"options": (), "about": (), "tags": {}, "captions": captions[place - 1 : place]}
            said = {"answer": answer(number, place), "ended": "stop", "exact": False}
            lines.append(to_line(Prediction(column="tuned", mode="free_running", part=part, **facts, **said)))
    (folder / "predictions.jsonl").write_text("".join(lines))
    (folder / "evaluation.json").write_text('{"title": "t", "apart": [], "metrics": [], "samples": 1}')
    (folder / "metrics.json").write_text("{}")
    return folder


def judged(run: Path, address: str, *overrides: str) -> dict[str, float]:
    """The figures of a judgement, by name."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("judge", [f"address={address}", "judge=m", "workers=2", *overrides])
    run.mkdir(exist_ok=True)
    return {figure.name: figure.value for figure in judge(config, run)}


def verdicts(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "verdicts.jsonl").read_text().splitlines()]


def scores(prompt: str) -> str:
    """Scores every name that the prompt's form has: by how long the answer is, or once not readably."""
    form = re.findall(r'"([^"]+)": 0', prompt)
    if "Question 1.1?" in prompt and "[A1]" not in prompt:
        return "I would rather not."
    return f"Well. {json.dumps({name: 4 + len(form) % 7 for name in form})}"


def test_mmdu_scores_each_answer_beside_its_reference(tmp_path, capsys):
    folder = evaluation(tmp_path / "one", "mmdu", lambda n, k: f"answer {n}.{k}")
    with stand_in(scores) as (address, asked):
        found = judged(tmp_path / "run", address, f"predictions={folder}", "images=true")
    assert found == {**dict.fromkeys(MMDU, 4.0), OVERALL: 4.0}
    assert len(asked) == 6
    lines = verdicts(tmp_path / "run")
    assert [(line["dialogue"], line["round"]) for line in lines] == [(f"d{n}", k) for n in range(3) for k in (1, 2)]
    assert all(
        f"truth {n}.{k}" in line["prompt"]
        for line, (n, k) in zip(lines, [(n, k) for n in range(3) for k in (1, 2)], strict=True)
    )
    assert [line["scores"] is None for line in lines] == [False, False, True, False, False, False]
    assert lines[2]["raw"] == "I would rather not."
    assert {len(request["messages"][0]["content"]) for request in asked} == {2, 3}  # the prompt and all images so far
    assert "count for no one: 1" in capsys.readouterr().out
    record = json.loads((tmp_path / "run/judgement.json").read_text())
    assert (record["judge"], record["verdicts"], record["unreadable"]) == ("m", 6, 1)


def test_sparkles_eval_scores_whole_dialogues_by_captions(tmp_path):
    folder = evaluation(tmp_path / "one", "sparkles_eval", lambda n, k: f"answer {n}.{k}")
    with stand_in(scores) as (address, asked):
        found = judged(tmp_path / "run", address, f"predictions={folder}")
    assert found.keys() == {f"A{k}{c}" for k in (1, 2) for c in (" C1", " C2", " C3", "")} | {"all"}
    assert len(asked) == 3
    prompt = verdicts(tmp_path / "run")[1]["prompt"]
    for words in ('Image 1: "a red square"', 'Image 2: "a blue circle"', "[A2]\nanswer 1.2", "[Q1]\nQuestion 1.1?"):
        assert words in prompt
    bare = evaluation(tmp_path / "bare", "sparkles_eval", lambda n, k: "a", captions=())
    with pytest.raises(ValueError, match="which these data lack: images=true shows them"):
        what_to_ask([bare], None, "free_running")


def test_pairs_are_compared_in_both_orders_and_bias_of_position_is_told(tmp_path):
    good = evaluation(tmp_path / "good", "own", lambda n, k: f"good answer {n}.{k}")
    bad = evaluation(tmp_path / "bad", "own", lambda n, k: f"bad answer {n}.{k}")
    named = f"predictions=[{good},{bad}]"

    def sound(prompt: str) -> str:
        return "[[1]]" if "[Answer 1]\ngood" in prompt else "[[2]]"

    with stand_in(sound) as (address, asked):
        found = judged(tmp_path / "sound", address, named)
    assert len(asked) == 12
    assert found == {"score": 1, "first": 1, "second": 0, "tie": 0, "undecided": 0, "shown_first": 0.5}
    with stand_in(lambda prompt: "Always the first: [[1]]") as (address, _):
        found = judged(tmp_path / "biased", address, named)
    assert found == {"score": 0.5, "first": 0, "second": 0, "tie": 0, "undecided": 1, "shown_first": 1}
    with (
        stand_in(lambda prompt: "perhaps") as (address, _),
        pytest.raises(RuntimeError, match="not one of 12 verdicts could be read"),
    ):
        judged(tmp_path / "vague", address, named)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["predictions={one}"], r"protocol=null: expected one of mmdu, sparkles_eval, pairs, which its benchmark does"),
        (["predictions={one}", "protocol=pairs"], "protocol=pairs judges two evaluations: predictions= names 1"),
        (["predictions=[{one},{one}]", "protocol=mmdu"], "protocol=mmdu judges one evaluation: predictions= names 2"),
        (["predictions={one}", "mode=teacher_forced"], "there are no teacher_forced answers; mode= chooses others"),
        (["predictions={one}", "mode=free"], "mode=free: expected one of teacher_forced, free_running"),
        (["predictions=nowhere"], "predictions=nowhere: no evaluation has ended there"),
        (["predictions={one}", "workers=0"], "workers=0: expected a whole number, at least 1"),
        (["predictions={one}", "address=localhost"], "address=localhost: expected http://"),
    ],
)
def test_mistakes_are_named(tmp_path, overrides, told):
    one = evaluation(tmp_path / "one", "own", lambda n, k: "a")
    with pytest.raises(ValueError, match=told):
        judged(tmp_path / "run", "http://127.0.0.1:9/v1", *(word.format(one=one) for word in overrides))


@pytest.mark.slow
def test_the_page_can_be_typed_and_a_killed_judgement_continues(tmp_path):
    """The lines of docs/evaluation.md; the first is killed by its own judge in the middle."""
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    scored, compared = re.findall(r"^visualchat-judge (.*)$", page, re.MULTILINE)
    for name in ("one", "two"):
        evaluation(tmp_path / f"outputs/{name}", "mmdu", lambda n, k, name=name: f"{name} {n}.{k}")
    process: list[subprocess.Popen] = []
    environment = {**os.environ, "OPENAI_API_KEY": "very-secret", "COLUMNS": "120"}

    def deadly(prompt: str) -> str:
        if "Question 1.2?" in prompt and process:
            process.pop().send_signal(signal.SIGKILL)
        return scores(prompt) if "[Answer to judge]" in prompt else "[[tie]]"

    def typed(words: str, address: str) -> list[str]:
        script = str(Path(sys.executable).parent / "visualchat-judge")
        return [script, *words.split(), f"address={address}", "judge=m", "workers=1"]

    with stand_in(deadly) as (address, asked):
        line = [*typed(scored, address), "hydra.run.dir=run"]
        begun = subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        process.append(begun)
        assert begun.wait() == -signal.SIGKILL
        assert len(verdicts(tmp_path / "run")) == 3
        done = subprocess.run(line, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
        assert "continuing: 3 of 6 steps are there" in done.stdout
        assert len(asked) == 7
        assert {request["headers"]["Authorization"] for request in asked} == {"Bearer very-secret"}
        judged(tmp_path / "whole", address, f"predictions={tmp_path}/outputs/one", "workers=1")
        assert (tmp_path / "run/verdicts.jsonl").read_bytes() == (tmp_path / "whole/verdicts.jsonl").read_bytes()
        line = typed(compared, address)
        done = subprocess.run(line, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
        assert re.search(r"tie +│ +100.00", done.stdout)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"very-secret" in path.read_bytes()]

"""visualchat-train and visualchat-evaluate on the questions with hops, as they are typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from visualchat.tiny.hops import ASK_HOPS

PARTS = ("seen", "more", "unseen")
SMALL = [*(f"evaluation.dialogues.{part}.size=6" for part in PARTS), "evaluation.samples=1", "threads=1"]
TRAINING = ["data.train.size=16", "data.validation.size=4", "trainer.max_epochs=1", "callbacks.samples=null"]


def run(folder: Path, command: str, *arguments: str) -> None:
    """Type a command in a folder."""
    line = [str(Path(sys.executable).parent / f"visualchat-{command}"), "data=tiny_hops", *arguments]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_each_question_keeps_its_hop_and_each_hop_has_its_figure(tmp_path):
    run(tmp_path, "train", *SMALL, *TRAINING, "evaluation.captioned=null", "hydra.run.dir=run")
    sizes = [setting for setting in SMALL if not setting.startswith("threads")]
    run(tmp_path, "evaluate", *sizes, "folder=run/model", "evaluation.max_new_tokens=4", "hydra.run.dir=scored")
    lines = (tmp_path / "scored" / "predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert {p["part"] for p in predictions} == set(PARTS)
    assert {p["column"] for p in predictions} == {"tuned", "blind"}
    assert {p["mode"] for p in predictions} == {"teacher_forced"}
    assert all(p["tags"] == {"hop": ASK_HOPS[p["kind"]][2]} for p in predictions)
    assert max(p["images"] for p in predictions if p["part"] == "more") > 4
    assert max(p["images"] for p in predictions if p["part"] != "more") <= 4
    scores = json.loads((tmp_path / "scored" / "scores.json").read_text())
    tuned = [p for p in predictions if p["column"] == "tuned"]
    for hop in {p["tags"]["hop"] for p in tuned}:
        of_hop = [p["exact"] for p in tuned if p["tags"]["hop"] == hop]
        figure = next(f for f in scores if (f["column"], f["name"]) == ("tuned", f"exact_match/hop_{hop}"))
        assert figure["questions"] == len(of_hop)
        assert figure["value"] == pytest.approx(sum(of_hop) / len(of_hop))
        assert figure["low"] <= figure["value"] <= figure["high"]

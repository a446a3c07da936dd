"""Commands with several processes: each run and each job of a sweep starts once, in one folder."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TWO = ["experiment=smoke", "trainer.accelerator=cpu", "trainer.devices=2"]


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "visualchat.cli.train", *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done.stdout


@pytest.mark.slow
def test_a_run_of_two_ranks_evaluates_and_saves_once(tmp_path):
    said = run(tmp_path, *TWO, "trainer/strategy=zero3_offload", "gradient_checkpointing=true")
    assert said.count("tuned in") == said.count("held-out dialogues") == 1
    (left,) = tmp_path.glob("outputs/*/*")
    metrics = json.loads((left / "metrics.json").read_text())
    assert metrics["train/steps"] == 2  # 8 dialogues in batches of 2 on 2 ranks
    assert {"best.ckpt", "last.ckpt"} == {path.name for path in (left / "checkpoints").iterdir()}
    assert (left / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_each_job_of_a_sweep_starts_once(tmp_path):
    """Both jobs with two processes each, in the order asked for, and nothing beside them."""
    said = run(tmp_path, "-m", *TWO, "attention=causal,mmca", "trainer/strategy=ddp", "evaluation.samples=0")
    assert said.count("tuned in") == 2
    assert said.count("sweep (exact match in %)") == 1
    (sweep,) = tmp_path.glob("outputs/*/*/*")
    assert sweep.parts[-3] == "sweeps"
    left = sorted(path.parent.relative_to(sweep) for path in sweep.rglob("metrics.json"))
    assert len(left) == len([*sweep.rglob("model.safetensors")]) == 2
    with (sweep / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["attention"] for row in rows] == ["causal", "mmca"]
    for folder in left:
        with (sweep / folder / "logs" / "csv" / "metrics.csv").open() as file:
            steps = [row["step"] for row in csv.DictReader(file) if row["train/loss"]]
        assert steps == ["0", "1"]

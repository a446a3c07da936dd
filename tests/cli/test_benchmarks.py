"""Benchmarks through the command: typed with a saved model, on their twins."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data root with the twins."""
    folders = [str(Path(__file__).parents[1] / "data" / "sources" / part) for part in ("", "benchmarks")]
    sys.path[:0] = folders
    from benchmark_twins import TWINS
    from corpora import Corpus

    root = tmp_path_factory.mktemp("root")
    for name in ("muirbench", "sparkles_eval"):
        TWINS[name].write(Corpus(root))
    for folder in folders:
        sys.path.remove(folder)
    return root


def evaluate(root: Path, folder: Path, *arguments: str) -> tuple[dict[str, float], str]:
    """The figures of `visualchat-evaluate`, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "visualchat.cli.evaluate", f"folder={folder}", "evaluation.batch_size=8", *arguments],
        cwd=folder.parent,
        env={**os.environ, "COLUMNS": "160", "VISUALCHAT_DATA": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    newest = max(folder.parent.rglob("metrics.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text()), done.stdout + done.stderr


@pytest.mark.slow
def test_a_benchmark_is_scored_by_its_own_metrics(root, tmp_path, model, processor):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    choices = ["evaluation.option_likelihood=true", "evaluation.metrics=[accuracy,option_likelihood,groups_right]"]
    choices += ["evaluation.controls=[blind,replaced]", "evaluation.max_new_tokens=4"]
    figures, said = evaluate(root, folder, "evaluation=muirbench", *choices)
    assert {"accuracy/all", "accuracy/Ordering", "groups_right/all", "option_likelihood/all"} <= figures.keys()
    assert 0 <= figures["groups_right/all"] <= figures["accuracy/all"] <= 1
    assert "could not be read" in said  # a model of random weights names no option
    # without images, words alone are worth chance: twins differ in their images and answers alone
    assert figures["blind/option_likelihood/all"] == pytest.approx(1 / 4)
    assert "replaced/accuracy/all" in figures
    figures, _ = evaluate(root, folder, "evaluation=sparkles_eval", "evaluation.max_new_tokens=4")
    assert {"rouge_l/all", "bleu_4/all"} <= figures.keys()

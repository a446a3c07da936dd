"""The command for a GPU runs from end to end at tiny shapes, so that only the device is new to it."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gpu():
    return import_module("gpu")


def test_it_measures_attention_and_steps_and_fills_the_document(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: None)  # no compiler is needed to test the way there
    page = tmp_path / "page.md"
    page.write_text("before <!-- gpu --> old <!-- end of gpu --> after")
    options = ["--device", "cpu", "--size", "tiny", "--lengths", "128", "--repeats", "1", "--document", str(page)]
    gpu.main([*options, "--output", str(tmp_path)])
    (path,) = tmp_path.glob("gpu-*.json")
    result = json.loads(path.read_text())
    steps = [(r["kind"], r["compiled"]) for r in result["training"]]
    assert steps == [(kind, compiled) for compiled in (False, True) for kind in ("causal", "mmca", "unit")]
    assert all(r["tokens_a_second"] > 0 and r["peak_bytes"] > 0 and r["planned_bytes"] > 0 for r in result["training"])
    forms = {r["form"] for r in result["attention"]}
    assert forms == {"causal", "mmca/sdpa", "mmca_joint/sdpa", "unit/sdpa", "label/sdpa"}
    assert all(r["training_ms"] > 0 and r["decode_ms"] > 0 for r in result["attention"])
    text = page.read_text()
    assert "| `mmca` | yes |" in text
    assert "| unit/sdpa |" in text
    assert "old" not in text
    assert text.endswith("<!-- end of gpu --> after")


def test_without_a_device_it_says_so():
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, FOLDER / "gpu.py"], env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no CUDA device was found; --device cpu --size tiny" in done.stderr

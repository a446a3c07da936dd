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
    options = [
        "--device",
        "cpu",
        "--size",
        "tiny",
        "tiny_4bit",
        "--lengths",
        "128",
        "--repeats",
        "1",
        "--document",
        str(page),
    ]
    gpu.main([*options, "--output", str(tmp_path)])
    (path,) = tmp_path.glob("gpu-*.json")
    result = json.loads(path.read_text())
    steps = [(r["size"], r["kind"], r["compiled"]) for r in result["training"]]
    ways = (("tiny", False), ("tiny", True), ("tiny_4bit", False))
    assert steps == [(size, kind, compiled) for size, compiled in ways for kind in ("causal", "mmca", "unit")]
    assert all(r["tokens_a_second"] > 0 and r["peak_bytes"] > 0 and r["planned_bytes"] > 0 for r in result["training"])
    forms = {r["form"] for r in result["attention"]}
    assert forms == {"causal", "mmca/sdpa", "mmca_joint/sdpa", "unit/sdpa", "label/sdpa"}
    assert all(r["training_ms"] > 0 and r["decode_ms"] > 0 for r in result["attention"])
    text = page.read_text()
    assert "| `tiny` | `mmca` | yes |" in text
    assert "| `tiny_4bit` | `unit` | no |" in text
    assert "| unit/sdpa |" in text
    assert "old" not in text
    assert text.endswith("<!-- end of gpu --> after")


def test_the_layers_of_4_bits_are_so_and_pass_gradients_on(gpu, tmp_path):
    """The bytes of their weights are half a byte each; what trains gets a gradient through them."""
    bench = gpu.train_step.Bench(gpu.train_step.SIZES["tiny_4bit"], "cpu", tmp_path)
    layers = bench.model.language_model.model.layers
    maps = [m for m in layers.modules() if isinstance(m, torch.nn.Linear)]
    assert len(maps) == 2 * 7
    assert all(m.weight.dtype == torch.uint8 and m.weight.numel() == m.in_features * m.out_features // 2 for m in maps)
    bench.loss("mmca").backward()
    assert bench.model.get_input_embeddings().weight.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in bench.model.multi_modal_projector.parameters())


def test_without_a_device_it_says_so():
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, FOLDER / "gpu.py"], env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no CUDA device was found; --device cpu --size tiny" in done.stderr

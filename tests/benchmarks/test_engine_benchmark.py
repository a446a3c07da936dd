"""The benchmark of the engine at a tiny size: it measures all ways and writes what the page quotes."""

import json
import sys
from importlib import import_module

import pytest
import torch


@pytest.mark.slow
def test_it_measures_and_writes(tmp_path, monkeypatch, capsys):
    benchmark = import_module("engine")
    threads = torch.get_num_threads()
    sizes = ["--repeats", "1", "--tokens", "2", "--sessions", "1", "2", "--chunks", "512", "--kinds", "numbered"]
    monkeypatch.setattr(sys, "argv", ["engine.py", *sizes, "--output", str(tmp_path / "found.json")])
    benchmark.main()
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "found.json").read_text())["kinds"]["numbered"]
    assert found["by one session"]["1"] == 1.0
    assert found["tokens a second"].keys() == {"apart", "1", "2"}
    assert all(
        value > 0 for value in (*found["tokens a second"].values(), *found["longest step, ms, by chunk"].values())
    )
    assert (tmp_path / "found.png").stat().st_size > 0
    assert "| `numbered` |" in capsys.readouterr().out

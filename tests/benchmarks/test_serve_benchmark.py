"""The benchmark of the server measures what it says; its committed result carries what docs/serving.md says of it."""

import json
from pathlib import Path

import pytest

import serve as benchmark

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "serve-cpu.json"


@pytest.mark.slow
def test_a_small_run(tmp_path, monkeypatch, capsys):
    output = tmp_path / "found.json"
    words = ["--clients", "2", "--images", "2", "--ways", "plain", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["serve.py", *words])
    benchmark.main()
    assert "| plain, 2 |" in capsys.readouterr().out
    found = json.loads(output.read_text())["ways"]["plain"]["2"]
    assert found["images computed"] == 2
    assert found["known share of prompts"] > 0.5
    assert found["requests a second"] > 0
    assert 0 < found["first token, ms"] <= found["first token, ms, slowest of twenty"]
    assert output.with_suffix(".png").stat().st_size > 1000


def test_routing_by_content_computes_each_image_once_where_spreading_does_not():
    result = json.loads(RESULTS.read_text())
    assert {*result["ways"]} == {*benchmark.WAYS}
    for clients, found in result["ways"]["routed"].items():
        spread = result["ways"]["spread"][clients]
        assert result["images"] <= found["images computed"] < spread["images computed"]
        assert found["known share of prompts"] > spread["known share of prompts"]
        assert found["images computed"] == result["images"] or int(clients) > 16  # beyond, first choices are busy

"""The benchmark of the chat at a tiny size: all ways answer alike, and it writes what the page quotes."""

import json
import sys
from importlib import import_module

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark():
    return import_module("chat")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["numbered", "mmca", "unit"])
def test_all_ways_compute_the_same(benchmark, kind):
    """float32 in other orders; a known image in the very bits of a new one."""
    model = benchmark.make_model(kind, 1, 16)
    ours, plain = benchmark.answerer(model, 16), benchmark.answerer(model, 16, stored=False)
    images = benchmark.pictures(2, 16)
    prefix, tokens = benchmark.prompt(model, benchmark.CASES["the same system text"], 0, 2)
    new = ours.prefill(tokens, images, ours.new_cache())
    assert torch.equal(ours.prefill(tokens, images, ours.new_cache()), new)
    assert (ours.store.stats.misses, ours.store.stats.hits) == (2, 2)
    hit = ours.new_cache()
    ours.prefill(prefix, images, hit)
    torch.testing.assert_close(ours.prefill(tokens, [], hit), new, atol=1e-5, rtol=1e-4)
    filled = ours.new_cache()
    assert torch.equal(ours.compute(tokens, ours.insert(tokens, images, filled), filled), new)
    torch.testing.assert_close(plain.prefill(tokens, images, plain.new_cache()), new, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_it_measures_and_writes(benchmark, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    given = ["--repeats", "1", "--rounds", "2", "--layers", "2", "--images", "2", "--image-side", "16"]
    given += ["--figure", str(tmp_path / "found.png"), "--output", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["chat.py", *given])
    benchmark.main()
    torch.set_num_threads(threads)
    result = json.loads((tmp_path / "found.json").read_text())
    found = result["kinds"]
    assert found.keys() == benchmark.KINDS.keys()
    for figures in found.values():
        assert figures["new conversation"].keys() == benchmark.CASES.keys()
        for case in figures["new conversation"].values():
            assert case["known images by each"]["known images"] == 1.0
            assert all(value > 0 for value in case["ms"].values())
        assert {len(times) for times in figures["ms by round"].values()} == {2}
    layers, states, heads, tokens, size, fp32 = 2, 2, 8, 4, 32, 4
    assert found["numbered"]["bytes of an image"] == layers * states * heads * tokens * size * fp32
    exact, turned = (result["exactness"][name] for name in ("numbered, known images", "causal, images turned"))
    assert exact["largest difference of logits"] < 1e-4 < turned["largest difference of logits"]
    assert exact["tokens alike"] == 1.0
    assert (tmp_path / "found.png").stat().st_size > 1000
    assert "their text alone" in benchmark.tables(result)

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
    prefix, tokens = benchmark.prompt(model, 0, 2)
    new = ours.prefill(tokens, images, ours.new_cache())
    assert torch.equal(ours.prefill(tokens, images, ours.new_cache()), new)
    assert (ours.store.stats.misses, ours.store.stats.hits) == (2, 2)
    hit = ours.new_cache()
    ours.prefill(prefix, images, hit)
    torch.testing.assert_close(ours.prefill(tokens, [], benchmark.twin(hit)), new, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain.prefill(tokens, images, plain.new_cache()), new, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_it_measures_and_writes(benchmark, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    sizes = ["--repeats", "1", "--rounds", "2", "--layers", "1", "--images", "2", "--image-side", "16"]
    monkeypatch.setattr(sys, "argv", ["chat.py", *sizes, "--output", str(tmp_path / "found.json")])
    benchmark.main()
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "found.json").read_text())["kinds"]
    assert found.keys() == benchmark.KINDS.keys()
    for figures in found.values():
        assert figures["known images by each"]["known images"] == 1.0
        assert all(value > 0 for value in figures["ms"].values())
        assert {len(times) for times in figures["ms by round"].values()} == {2}

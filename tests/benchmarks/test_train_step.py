"""The benchmark of a whole training step runs at a tiny size, and its cases compute one loss."""

import json
from importlib import import_module

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark():
    return import_module("train_step")


@pytest.fixture(scope="module")
def bench(benchmark, tmp_path_factory):
    return benchmark.Bench(benchmark.SIZES["tiny"], "cpu", tmp_path_factory.mktemp("features"))


@pytest.mark.parametrize("kind", ["mmca", "causal"])
def test_the_cases_compute_one_loss(benchmark, bench, kind):
    """All rows, cached, and packed beside padded: the same sums in other orders, in float32."""
    with torch.no_grad():
        losses = {case: bench.loss(case) for case in benchmark.CASES if case.startswith(kind)}
    expected = losses[kind]
    for how in ("all rows", "cached"):
        torch.testing.assert_close(losses[f"{kind}, {how}"], expected, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(losses[f"{kind}, packed"], losses[f"{kind}, padded"], rtol=1e-6, atol=0.0)


def test_the_kinds_differ(bench):
    with torch.no_grad():
        assert abs(bench.loss("mmca") - bench.loss("causal")) > 1e-6


def test_gradients_with_and_without_row_selection(bench):
    """What trains gets the same gradient from chunks of answer rows as from all logits; float32 sums of both signs."""
    found = {}
    for case in ("mmca", "mmca, all rows"):
        bench.optimizer.zero_grad()
        bench.loss(case).backward()
        found[case] = bench.model.multi_modal_projector.weight.grad.clone()
    bench.optimizer.zero_grad()
    error = (found["mmca"] - found["mmca, all rows"]).abs().max() / found["mmca"].abs().max()
    assert error < 1e-5


def test_nothing_of_the_encoder_is_kept_for_a_backward_pass(bench):
    assert not bench.model.vision_features(bench.pixel_values).requires_grad


def test_the_batches_are_what_the_page_says(benchmark):
    """4096 real tokens, half of them of images, a fifth answers; 8 dialogues padded are a third and more padding."""
    batches = benchmark.make_batches(benchmark.SIZES["small"], "cpu")
    for batch in batches.values():
        assert batch["attention_mask"].sum() == 4096
        assert batch["mm_token_type_ids"].sum() == 2048
        assert (batch["labels"] >= 0).sum() == pytest.approx(816, abs=8)
    assert batches["padded"]["labels"].shape == (8, 800)
    assert batches["packed"]["labels"].shape == batches[""]["labels"].shape == (1, 4096)
    assert len(batches["packed"]["segment_ids"].unique()) == 8


def test_operations_are_counted(benchmark):
    """Two images of 16 tokens in one dialogue; text of 3, 16 image tokens, 2 of text."""
    size = benchmark.SIZES["tiny"]
    (row,) = benchmark.make_rows([[(3, 1, 1), (1, 1, 1)]], size)
    length = 2 * 16 + 8
    assert benchmark.pairs(row, "causal") == length * (length + 1) // 2
    assert benchmark.pairs(row, "mmca") == 1 + 2 + 3 + 20 + 21 + 22 + 39 + 40


def test_speed_is_measured_in_pairs(benchmark, bench):
    times, gains = benchmark.measure_speed(bench, ["attention", "packing, mmca"], repeats=1)
    assert {case: len(runs) for case, runs in times.items()} == {
        "causal": 2,
        "mmca": 2,
        "mmca, padded": 1,
        "mmca, packed": 1,
    }
    assert gains["attention"] == [a / b for a, b in zip(times["causal"], times["mmca"], strict=True)]


@pytest.mark.slow
def test_it_measures_and_writes(benchmark, tmp_path):
    threads = torch.get_num_threads()
    options = ["--size", "tiny", "--threads", "1", "--repeats", "1", "--pairs", "feature cache, mmca"]
    benchmark.main([*options, "--output", str(tmp_path)])
    torch.set_num_threads(threads)
    result = json.loads((tmp_path / "train_step-cpu.json").read_text())
    assert [r["case"] for r in result["cases"]] == ["mmca", "mmca, cached"]
    assert all(r["peak_bytes"] >= r["bytes_before"] > 0 and r["tokens_a_second"] > 0 for r in result["cases"])
    assert result["times faster"]["feature cache, mmca"]["median"] > 0
    assert str(tmp_path) not in json.dumps(result)
    assert (tmp_path / "train_step-cpu.png").stat().st_size > 0

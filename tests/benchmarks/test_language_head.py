"""The benchmark of the head's loss compares ways that compute one loss and one gradient."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    module = import_module("language_head")
    monkeypatch.setattr(module, "VOCABULARY", 50)
    return module


def test_all_ways_compute_one_loss_and_gradient(benchmark):
    """The same sums in float32, in other orders."""
    model, states, targets = benchmark.inputs(16, "float32", 23, "cpu")
    expected = benchmark.one_pass("torch, whole", model, states, targets)
    gradient = states.grad
    for way in benchmark.WAYS:
        loss = benchmark.one_pass(way, model, states, targets)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(states.grad, gradient, rtol=1e-5, atol=1e-7)


def test_it_measures_times_and_errors(benchmark):
    times = benchmark.times(16, "float32", 23, "cpu", rounds=2)
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times.values())
    assert all(0 < error < 1e-5 for error in benchmark.errors(16, "float32", 23, "cpu").values())

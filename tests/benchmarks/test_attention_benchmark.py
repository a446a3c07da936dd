"""The benchmark runs at small sizes, and with its measure the fast form's memory grows linearly."""

import json
from importlib import import_module

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark():
    return import_module("attention")


def test_it_measures_every_layout_and_form(benchmark, tmp_path):
    threads = torch.get_num_threads()
    page = tmp_path / "page.md"
    page.write_text("before <!-- measured --> old <!-- end of measured --> after")
    options = ["--threads", "1", "--repeats", "1", "--image-tokens", "16", "--document", str(page)]
    benchmark.main([*options, "--output", str(tmp_path)])
    torch.set_num_threads(threads)
    result = json.loads((tmp_path / "attention-cpu-1.json").read_text())
    assert {r["layout"] for r in result["layouts"]} == set(benchmark.LAYOUTS)
    assert {"causal", "mmca/sdpa", "unit/sdpa", "textbook"} <= {r["form"] for r in result["layouts"]}
    assert all(r["forward_ms"] > 0 and r["extra_bytes"] > 0 for r in result["layouts"])
    assert str(tmp_path) not in json.dumps(result)
    assert (tmp_path / "attention-cpu-1.png").stat().st_size > 0
    text = page.read_text()
    assert text.startswith("before <!-- measured -->")
    assert text.endswith("<!-- end of measured --> after")
    assert "| mmca/sdpa |" in text
    assert "old" not in text


def test_the_textbook_form_is_mmca(benchmark):
    """What is compared with does compute the same: float32 in two orders of sums."""
    row = benchmark.make_row(benchmark.LAYOUTS["3 images"], 8, "cpu")
    setting = benchmark.Setting("cpu", torch.float32, 2, 8, 1, ("eager",))
    torch.manual_seed(0)
    qkv = [setting.tensor(row.length) for _ in range(3)]
    found = benchmark.forms(row, ("eager",))
    torch.testing.assert_close(found["textbook"](*qkv), found["mmca/eager"](*qkv), atol=1e-5, rtol=1e-5)


def test_operations_of_mmca_are_counted(benchmark):
    """Eight images of 256 tokens in 3848: causal attention computes 2.1 times as many pairs."""
    row = benchmark.make_row(benchmark.LAYOUTS["8 images"], 256, "cpu")
    assert row.length == 3848
    text, views = 1800 * 1801 / 2, sum(200 * 256 * seen for seen in range(9))
    for kind in ("mmca", "mmca_joint"):
        assert benchmark.computed_pairs(f"{kind}/sdpa", row) == pytest.approx(text + views, rel=1e-3)
    assert benchmark.computed_pairs("causal", row) / (text + views) == pytest.approx(2.14, abs=0.01)


@pytest.mark.parametrize("form", ["causal", "mmca/sdpa", "unit/sdpa"])
def test_memory_grows_linearly(benchmark, form):
    """Twice the length, at most twice the bytes at the peak; scores over all pairs would take four times as many.

    Both lengths are beyond the point where the image side changes from a mask to pieces, and text is cut into blocks of
    one length in both, which need not be gathered. A tenth is for the kernel's
    scratch, which depends on block sizes.
    """
    setting = benchmark.Setting("cpu", torch.float32, 2, 16, 1, ("sdpa",))
    bytes_at = []
    for dialogue in ([128, 64] * 8, [128, 64] * 16):
        row = benchmark.make_row([dialogue], 256, "cpu")
        run = benchmark.training_runs(row, setting)[form]
        run()
        bytes_at.append(benchmark.peak_memory(run, "cpu"))
    assert bytes_at[1] / bytes_at[0] < 2.2

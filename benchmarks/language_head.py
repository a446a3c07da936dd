"""Ours against torch's `linear_cross_entropy`: the loss of answer rows under a frozen head, forward and backward.

    python benchmarks/language_head.py                     # CPU, one thread; about ten minutes
    python benchmarks/language_head.py --device cuda

    ours            `visualchat.model.loss.training_loss`: the mean and each token's loss
    torch, none     torch's in chunks, `reduction="none"`: what gives the same two numbers
    torch, our size the same, in chunks of as many rows as ours
    torch, mean     torch's in chunks, `reduction="mean"`: the mean alone
    torch, whole    torch's without chunks: all logits at once

Times are medians over rounds in which all ways follow each other, so that what else the machine does falls on all.
Memory is what a fresh process takes at its peak beyond what it held before the first pass (on a CPU under Linux).
Prints a table; writes `results/language_head-DEVICE.json`.

Shapes: N answer rows, E hidden size, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from common import process_memory
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import linear_cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from visualchat.model.loss import CHUNK, training_loss

WAYS = ("ours", "torch, none", "torch, our size", "torch, mean", "torch, whole")
VOCABULARY = 32_000
DTYPES = ("float32", "bfloat16")
CASES = [(width, dtype, 816) for width in (512, 2048) for dtype in DTYPES]
"""Hidden size, precision, and as many answer rows as a batch of `train_step.py` has."""
MEGABYTE = 1e6


def language_model(width: int, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    """A frozen language model of which only the head matters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=0,
        num_attention_heads=8,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(device, dtype).requires_grad_(False)


def one_pass(way: str, model: LlamaForCausalLM, rows: Tensor, targets: Tensor) -> Tensor:
    """The loss, with the rows' gradient left in `rows.grad`."""
    rows.grad = None
    if way == "ours":
        loss, _ = training_loss(model, rows, targets)
    else:
        size = {"batch_chunk_size": CHUNK // VOCABULARY} if way == "torch, our size" else {}
        options = None if way == "torch, whole" else LinearCrossEntropyOptions(**size)
        reduction = "none" if way in ("torch, none", "torch, our size") else "mean"
        loss = linear_cross_entropy(rows, model.lm_head.weight, targets, reduction=reduction, options=options).mean()
    loss.backward()
    return loss


def inputs(width: int, dtype: str, rows: int, device: str) -> tuple[LlamaForCausalLM, Tensor, Tensor]:
    """The model, hidden states (N, E) of unit spread, and targets (N,)."""
    model = language_model(width, getattr(torch, dtype), device)
    states = torch.randn(rows, width, device=device).to(getattr(torch, dtype)).requires_grad_()
    return model, states, torch.randint(0, VOCABULARY, (rows,), device=device)


def peak(way: str, width: int, dtype: str, rows: int, device: str) -> float:
    """Megabytes that two passes take at most, in this process."""
    model, states, targets = inputs(width, dtype, rows, device)
    one_pass(way, model, *_few(states, targets))  # what libraries keep for themselves
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = process_memory("VmRSS")
    for _ in range(2):
        one_pass(way, model, states, targets)
    after = torch.cuda.max_memory_allocated() if device == "cuda" else process_memory("VmHWM")
    return (after - before) / MEGABYTE


def _few(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return states[:4].detach().requires_grad_(), targets[:4]


def times(width: int, dtype: str, rows: int, device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one round that does not count."""
    model, states, targets = inputs(width, dtype, rows, device)
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS:
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            one_pass(way, model, states, targets)
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                taken[way].append(time.perf_counter() - start)
    return taken


def errors(width: int, dtype: str, rows: int, device: str) -> dict[str, float]:
    """How far each way's gradient is from that of fp64, over the latter's norm."""
    model, states, targets = inputs(width, dtype, min(rows, 256), device)
    exact = states.detach().double().requires_grad_()
    linear_cross_entropy(exact, model.lm_head.weight.double(), targets).backward()
    found = {}
    for way in WAYS:
        one_pass(way, model, states, targets)
        found[way] = float((states.grad.double() - exact.grad).norm() / exact.grad.norm())
    return found


def main() -> None:
    """Measure every case and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", nargs=4, metavar=("WAY", "WIDTH", "DTYPE", "ROWS"), help="print one peak and end")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        way, width, dtype, rows = arguments.peak
        print(peak(way, int(width), dtype, int(rows), arguments.device))
        return
    results = []
    print(f"{'E':>5} {'dtype':>9} {'N':>5}  " + "  ".join(f"{way:>26}" for way in WAYS))
    for width, dtype, rows in CASES:
        taken = times(width, dtype, rows, arguments.device, arguments.rounds)
        off = errors(width, dtype, rows, arguments.device)
        case = {"width": width, "dtype": dtype, "rows": rows, "vocabulary": VOCABULARY, "ways": {}}
        for way in WAYS:
            command = [sys.executable, __file__, "--device", arguments.device, "--threads", str(arguments.threads)]
            command += ["--peak", way, str(width), dtype, str(rows)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            ratio = median(a / b for a, b in zip(taken[way], taken["ours"], strict=True))
            case["ways"][way] = {
                "seconds": median(taken[way]),
                "seconds over ours": ratio,
                "peak MB": float(done.stdout),
                "gradient error": off[way],
            }
        cells = [
            f"{c['seconds']:6.3f}s {c['seconds over ours']:5.2f}x {c['peak MB']:7.0f}MB" for c in case["ways"].values()
        ]
        print(f"{width:>5} {dtype:>9} {rows:>5}  " + "  ".join(f"{cell:>26}" for cell in cells), flush=True)
        results.append(case)
    about = {"torch": torch.__version__, "device": arguments.device, "threads": arguments.threads}
    file = Path(__file__).parent / "results" / f"language_head-{arguments.device}.json"
    file.write_text(json.dumps({**about, "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

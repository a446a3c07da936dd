"""What a GPU makes of it: attention by kind and length, and a training step of a frozen model of LLaMA-2 7B's shape.

    make gpu                        # the tests marked gpu, then this, into the document; some minutes on one card
    python benchmarks/gpu.py        # this alone
    python benchmarks/gpu.py --device cpu --size tiny --lengths 128    # everything but the device

Attention in bf16 at H=32, D=128, eight images: forward and backward, and a decode step of 32 layers, each in turn with
torch's causal attention (`attention.py`). The training step is that of `train_step.py`, with each decoder layer
compiled and not, beside what `visualchat-plan` says of its memory. Writes `gpu-NAME.json` to the results folder, NAME
the device's.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import train_step
from common import put_between

import attention
from visualchat.plan.memory import STRATEGIES, Step, estimate
from visualchat.plan.shapes import sizes_of

LENGTHS = (2048, 4096, 8192, 16384, 32768)
KINDS = ("causal", "mmca", "unit")
"""Of the training step."""
TARGET = 12_000
"""Tokens a second of a training step under `mmca` on an H100 or H200."""
MARKS = ("<!-- gpu -->", "<!-- end of gpu -->")


def measure_attention(setting: attention.Setting, lengths: list[int]) -> Iterator[dict[str, Any]]:
    """A record for each length and form; the dense forms are left out."""
    for length in lengths:
        tokens = length * 256 // 3848  # of an image, so that the whole layout has about so many
        row = attention.make_row(attention.LAYOUTS["8 images"], tokens, setting.device)
        try:
            runs = gathered(attention.training_runs(row, setting))
            training = attention.paired(runs, setting.device, setting.repeats)
            with torch.no_grad():
                runs = gathered(attention.decode_runs(row, setting))
                decode = attention.paired(runs, setting.device, setting.repeats)
        except torch.OutOfMemoryError:
            yield {"tokens": row.length, "form": "all", "out_of_memory": True}
            continue
        for name in training:
            step = decode[name].record("decode", attention.LAYERS)
            yield {"tokens": row.length, "form": name, **training[name].record("training", 1), **step}


def gathered(runs: dict[str, Any]) -> dict[str, Any]:
    """The forms whose memory grows with the length, not with its square."""
    return {name: run for name, run in runs.items() if name != "textbook" and not name.startswith("mmca_reference")}


def measure_training(size: str, device: str, repeats: int, peak: float | None) -> Iterator[dict[str, Any]]:
    """A record for each kind, with each decoder layer compiled and not."""
    with tempfile.TemporaryDirectory() as folder:
        bench = train_step.Bench(train_step.SIZES[size], device, Path(folder))
        layers = bench.model.language_model.model.layers
        answers = int((bench.batch("mmca")["labels"] >= 0).sum())
        tokens = int(bench.batch("mmca")["attention_mask"].sum())
        step = Step(rows=1, tokens=tokens, images=train_step.IMAGES, answers=answers, checkpointing=False)
        planned = estimate(sizes_of(bench.model), STRATEGIES["auto"], 1, step).total
        for compiled in (False, True):
            if compiled:
                for layer in layers:
                    layer.compile()
            for kind in KINDS:
                bench.step(kind)  # plans, kernels, compilation, the optimizer's state
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                seconds = median(bench.seconds(kind) for _ in range(repeats))
                flops = bench.operations(kind) / seconds
                yield {
                    "kind": kind,
                    "compiled": compiled,
                    "seconds": seconds,
                    "tokens_a_second": tokens / seconds,
                    "mfu": flops / peak if peak else None,
                    "peak_bytes": train_step.memory(device),
                    "planned_bytes": planned,
                }


def tables(result: dict[str, Any]) -> list[str]:
    """Both tables as lines of Markdown."""
    facts = result["machine"]
    lines = [
        f"{facts['processor']}, torch {facts['torch']}, {facts['dtype']}. A training step of shape `{result['size']}`:",
        "",
        "| kind | layers compiled | tokens/s | share of the peak | peak memory, GB | planned, GB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for r in result["training"]:
        share = "" if r["mfu"] is None else f"{r['mfu']:.0%}"
        memory = f"{r['peak_bytes'] / 1e9:.1f} | {r['planned_bytes'] / 1e9:.1f}"
        how = "yes" if r["compiled"] else "no"
        lines.append(f"| `{r['kind']}` | {how} | {r['tokens_a_second']:.0f} | {share} | {memory} |")
    lines += [
        "",
        "Attention alone, beside torch's causal attention (median, least to most):",
        "",
        "| tokens | form | forward + backward, ms | times faster | decode step, ms a layer | its cost |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for r in result["attention"]:
        if r.get("out_of_memory"):
            lines.append(f"| {r['tokens']} | out of memory | | | | |")
            continue
        spread = f"{r['training_speedup']:.2f} ({r['training_least']:.2f} to {r['training_most']:.2f})"
        decode = f"{r['decode_ms']:.3f} | {1 / r['decode_speedup']:.2f}"
        lines.append(f"| {r['tokens']} | {r['form']} | {r['training_ms']:.2f} | {spread} | {decode} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--size", choices=train_step.SIZES, default="7b", help="of the training step's model")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="of attention, in tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", type=float, help="dense FLOP/s of the device, where it is not known by its name")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--document", type=Path, help="a Markdown file to put the tables into, between its marks")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device was found; --device cpu --size tiny --lengths 128 tries the command without one")
    cuda = options.device == "cuda"
    setting = attention.Setting(
        device=options.device,
        dtype=torch.bfloat16,
        heads=32 if cuda else 2,
        head_size=128 if cuda else 16,
        repeats=options.repeats,
        implementations=("sdpa", "flex") if cuda else ("sdpa",),
    )
    torch.manual_seed(0)
    facts = train_step.machine(options.device, torch.get_num_threads(), options.peak)
    result = {
        "machine": facts,
        "size": options.size,
        "training": list(measure_training(options.size, options.device, options.repeats, facts["peak_flops"])),
        "attention": list(measure_attention(setting, options.lengths)),
    }
    lines = tables(result)
    print("\n".join(lines))
    print(f"target: {TARGET} tokens/s of a training step of shape 7b under mmca on an H100 or H200")
    options.output.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", facts["processor"].lower()).strip("-")
    path = options.output / f"gpu-{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.document is not None:
        put_between(options.document, MARKS, lines)


if __name__ == "__main__":
    main()

"""What a GPU makes of it: attention by kind and length, and training steps of frozen models of LLaMA-2's shapes.

    make gpu                        # the tests marked gpu, then this, into the document; some minutes on one card
    python benchmarks/gpu.py        # this alone
    python benchmarks/gpu.py --device cpu --size tiny tiny_4bit --lengths 128    # all but the device

Attention in bf16 at H=32, D=128, eight images: forward and backward, and a decode step of 32 layers, each in turn with
torch's causal attention (`attention.py`). The training step is that of `train_step.py`, at 7B's shape with each decoder
layer compiled and not, at 70B's in 4 bits, beside what `visualchat-plan` says of its memory. Writes
`gpu-NAME.json` to the results folder, NAME the device's.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
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


def measure_training(name: str, device: str, repeats: int, peak: float | None) -> Iterator[dict[str, Any]]:
    """A record for each kind, with each decoder layer compiled and not; layers in 4 bits are not compiled."""
    size = train_step.SIZES[name]
    with tempfile.TemporaryDirectory() as folder:
        bench = train_step.Bench(size, device, Path(folder))
        layers = bench.model.language_model.model.layers
        answers = int((bench.batch("mmca")["labels"] >= 0).sum())
        tokens = int(bench.batch("mmca")["attention_mask"].sum())
        step = Step(rows=1, tokens=tokens, images=train_step.IMAGES, answers=answers, checkpointing=bool(size.bits))
        whole = train_step.make_model(replace(size, bits=None), "meta", bench.model.dtype)
        planned = estimate(sizes_of(whole), STRATEGIES["auto"], 1, step, base_bits=size.bits).total
        for compiled in (False,) if size.bits else (False, True):
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
                    "size": name,
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
        f"{facts['processor']}, torch {facts['torch']}, {facts['dtype']}. Training steps by the model's shape:",
        "",
        "| shape | kind | layers compiled | tokens/s | share of the peak | peak memory, GB | planned, GB |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for r in result["training"]:
        share = "" if r["mfu"] is None else f"{r['mfu']:.0%}"
        memory = f"{r['peak_bytes'] / 1e9:.1f} | {r['planned_bytes'] / 1e9:.1f}"
        how = "yes" if r["compiled"] else "no"
        lines.append(f"| `{r['size']}` | `{r['kind']}` | {how} | {r['tokens_a_second']:.0f} | {share} | {memory} |")
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
    shapes = {"choices": train_step.SIZES, "nargs": "+", "default": ["7b", "70b_4bit"]}
    parser.add_argument("--size", **shapes, help="of the models of the training step, in turn")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="of attention, in tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", type=float, help="dense FLOP/s of the device, where it is not known by its name")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--document", type=Path, help="a Markdown file to put the tables into, between its marks")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device was found; --device cpu --size tiny --lengths 128 tries the command without one")
    if find_spec("bitsandbytes") is None and any(train_step.SIZES[size].bits for size in options.size):
        parser.error("4 bits need bitsandbytes: pip install 'visualchat[quantized]', or choose another --size")
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
        "training": [
            record
            for size in options.size
            for record in measure_training(size, options.device, options.repeats, facts["peak_flops"])
        ],
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

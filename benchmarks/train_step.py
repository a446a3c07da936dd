"""Speed and memory of a whole training step: forward, loss, backward, AdamW, gradients cleared.

    python benchmarks/train_step.py                    # CPU, fp32, LLaMA of 4 layers and width 256; about five minutes
    python benchmarks/train_step.py --device cuda      # bf16, LLaMA-2 7B's shape with random weights, with MFU

One batch has 4096 real tokens: 8 images of 256, and 2048 of text, of which about 816 are answers. It is one dialogue of
8 rounds, or (packing) 8 dialogues of quite different lengths. Projector and token embedding train, as in the paper.

    KIND                the loss on answer rows, images encoded in the step
    KIND, all rows      logits of every position in fp32, then cross-entropy, as in the published code
    KIND, cached        vision features read from files instead of encoded; reading counts
    KIND, padded        8 dialogues, a row each
    KIND, packed        the same 8 dialogues in one row

KIND is mmca or causal (transformers' SDPA), and unit for the first case. What a pair's second case gains is the median
over rounds in which the two follow each other, so that what else the machine does falls on both. Peak memory is that of
a fresh process for each case: all of it on a CPU (imports too), what torch allocated on a GPU. Prints a table; writes
`train_step-DEVICE.json` and `.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the commands do

import torch
from common import cpu_name, process_memory
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from train_step_model import SIZES, Size, make_model, make_rows
from train_step_report import draw, show
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from visualchat.attention import Modality, implementation_name
from visualchat.dialogue.encoding import IGNORE_INDEX, NO_UNIT
from visualchat.images.feature_store import FeatureStore, image_key
from visualchat.training.feature_cache import open_store
from visualchat.training.optim import OptimizerSettings, build_optimizer

IMAGES = 8
KINDS = ("mmca", "causal")
TEXTS = (64, 96, 128, 192, 256, 352, 416, 544)
"""Text tokens of each dialogue that is packed, where an image has 256 tokens."""
PAIRS = {
    "attention": ("causal", "mmca"),
    "attention, unit": ("causal", "unit"),
    **{f"answer rows, {kind}": (f"{kind}, all rows", kind) for kind in KINDS},
    **{f"packing, {kind}": (f"{kind}, padded", f"{kind}, packed") for kind in KINDS},
    **{f"feature cache, {kind}": (kind, f"{kind}, cached") for kind in KINDS},
}
HOW = ("", ", all rows", ", cached", ", padded", ", packed")
CASES = ("mmca", "unit", "causal", *(f"{kind}{how}" for how in HOW[1:] for kind in KINDS))
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 FLOP/s of devices whose name holds these letters."""


def scaled(tokens: int, size: Size) -> int:
    """So many tokens where an image has 256, in proportion."""
    return max(1, tokens * size.image_tokens // 256)


def make_batches(size: Size, device: str) -> dict[str, dict[str, Tensor]]:
    """The batch of 8 rounds in one dialogue, and 8 dialogues of one round, padded and packed; without images."""
    rounds = [tuple(scaled(count, size) for count in (40, 114, 102))] * IMAGES
    (one,) = make_rows([rounds], size)
    parts = [(scaled(text // 8, size), scaled(text // 2 - text // 8 + text // 10, size)) for text in TEXTS]
    answers = [scaled(text - text // 2 - text // 10, size) for text in TEXTS]
    several = make_rows([[(*part, answer)] for part, answer in zip(parts, answers, strict=True)], size)
    longest = max(row["input_ids"].shape[1] for row in several)
    fill = {"labels": IGNORE_INDEX, "unit_ids": NO_UNIT}
    padded = {
        name: torch.cat(
            [
                torch.nn.functional.pad(row[name], (0, longest - row[name].shape[1]), value=fill.get(name, 0))
                for row in several
            ]
        )
        for name in several[0]
    }
    packed = {name: torch.cat([row[name] for row in several], dim=1) for name in several[0]}
    packed["segment_ids"] = torch.cat([torch.full_like(row["labels"], n) for n, row in enumerate(several)], dim=1)
    del one["position_ids"], padded["position_ids"]
    batches = {"": one, "padded": padded, "packed": packed}
    return {name: {key: value.to(device) for key, value in batch.items()} for name, batch in batches.items()}


class Bench:
    """One model and all it needs to run a step of any case; keeps features in `folder`."""

    def __init__(self, size: Size, device: str, folder: Path) -> None:
        self.size, self.device, self.kind = size, device, ""
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.model = make_model(size, device, dtype)
        self.batches = make_batches(size, device)
        noise = torch.Generator().manual_seed(1)
        shape = (IMAGES, size.pixels, size.pixels, 3)
        pixels = torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8)
        self.pictures = [Image.fromarray(picture.numpy()) for picture in pixels]
        side = {"shortest_edge": size.pixels}
        prepare = CLIPImageProcessorPil(size=side, crop_size=size.pixels)
        self.pixel_values = prepare(images=self.pictures, return_tensors="pt")["pixel_values"].to(device, dtype)
        self.store = self._fill(folder, prepare)
        self.optimizer = build_optimizer(OptimizerSettings(), self.model)

    def _fill(self, folder: Path, prepare: CLIPImageProcessorPil) -> FeatureStore:
        """A store that holds the features of all pictures."""
        processor: Any = SimpleNamespace(image_processor=prepare)
        store = open_store(folder, self.model, processor, str(self.pixel_values.dtype))
        with torch.no_grad():
            made = self.model.vision_features(self.pixel_values)
        for picture, features in zip(self.pictures, made, strict=True):
            store.write(image_key(picture), features)
        return store

    def batch(self, case: str) -> dict[str, Tensor]:
        """The case's batch, without its images."""
        how = case.partition(", ")[2]
        return self.batches[how if how in self.batches else ""]

    def loss(self, case: str) -> Tensor:
        """The case's loss, with its gradient's graph."""
        kind, _, how = case.partition(", ")
        if kind != self.kind:
            self.kind = self.model.config.attention_kind = kind
            self.model.language_model.set_attn_implementation(implementation_name(kind))
        inputs = dict(self.batch(case))
        if how == "cached":
            features = self.store.lookup([image_key(picture) for picture in self.pictures]).features
            assert features is not None
            inputs["vision_features"] = features.to(self.device)
        else:
            inputs["pixel_values"] = self.pixel_values
        if how != "all rows":
            return self.model(**inputs).loss
        labels = inputs.pop("labels")
        logits = self.model(**inputs, use_cache=False).logits.float()
        return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)

    def step(self, case: str) -> float:
        """A whole step; returns its loss."""
        loss = self.loss(case)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def seconds(self, case: str) -> float:
        """How long a step takes, the device's work included."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        self.step(case)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def operations(self, case: str) -> float:
        """Floating-point operations that the step needs: no gradients of frozen weights, none at padding."""
        batch, size = self.batch(case), self.size
        kind, _, how = case.partition(", ")
        maps = [m for m in self.model.language_model.model.layers.modules() if isinstance(m, nn.Linear)]
        layers = sum(m.in_features * m.out_features for m in maps)
        vision = sum(p.numel() for p in self.model.vision_tower.parameters())
        projector = sum(p.numel() for p in self.model.multi_modal_projector.parameters())
        tokens = int(batch["attention_mask"].sum())
        rows = tokens if how == "all rows" else int((batch["labels"] != IGNORE_INDEX).sum())
        image = IMAGES * size.image_tokens
        linear = 4 * layers * tokens + 4 * size.hidden * size.vocabulary * rows + 4 * projector * image
        attention = 12 * size.layers * size.hidden * pairs(batch, kind)
        return linear + attention + (0 if how == "cached" else 2 * vision * image)


def pairs(batch: dict[str, Tensor], kind: str) -> int:
    """Query-key pairs that a kind of attention weighs in a batch's real tokens."""
    found = 0
    dialogue = batch.get("segment_ids", torch.zeros_like(batch["labels"]))
    for row, real in enumerate(batch["attention_mask"].bool()):
        for number in dialogue[row].unique().tolist():
            own = real & (dialogue[row] == number)
            text, units = batch["mm_token_type_ids"][row][own] == Modality.TEXT, batch["unit_ids"][row][own]
            seen = torch.arange(1, len(units) + 1, device=units.device)
            if kind == "unit":  # label and image see what stands before them in their unit
                _, sizes = units[units != NO_UNIT].unique(return_counts=True)
                found += int(seen[units == NO_UNIT].sum()) + int((sizes * (sizes + 1) // 2).sum())
            else:
                found += int(seen.sum() if kind == "causal" else seen[text].sum())
    return found


Runs = dict[str, list[float]]


def measure_speed(bench: Bench, chosen: list[str], repeats: int) -> tuple[Runs, Runs]:
    """Seconds of every step by case, and by pair how many times faster its second case was, a number a round."""
    times: Runs = {case: [] for name in chosen for case in PAIRS[name]}
    gains: Runs = {}
    for case in times:
        bench.step(case)  # plans, kernels, the optimizer's state
    for name in chosen:
        print(f"speed: {name}", file=sys.stderr)
        gains[name] = []
        for _ in range(2 * repeats if name.startswith("attention") else repeats):
            before, after = (bench.seconds(case) for case in PAIRS[name])
            gains[name].append(before / after)
            for case, found in zip(PAIRS[name], (before, after), strict=True):
                times[case].append(found)
    return times, gains


def memory(device: str) -> int:
    """Bytes at the peak so far, of this process on a CPU (`VmHWM`; it begins anew in a new program), else torch's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return process_memory("VmHWM")


def measure_memory(size: str, device: str, case: str) -> dict[str, Any]:
    """Peak bytes of three steps of one case in this process, those before them, and the first step's loss."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(SIZES[size], device, Path(folder))
        before = memory(device)
        losses = [bench.step(case) for _ in range(3)]
    return {"peak_bytes": memory(device), "bytes_before": before, "loss": losses[0]}


def in_a_process(size: str, device: str, threads: int, case: str) -> dict[str, Any]:
    """`measure_memory` in a process of its own."""
    options = ["--size", size, "--device", device, "--threads", str(threads), "--measure", case]
    done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def machine(device: str, threads: int, peak: float | None) -> dict[str, Any]:
    """What the numbers were measured on; no names, no paths."""
    facts: dict[str, Any] = {"device": device, "torch": torch.__version__, "threads": threads}
    if device == "cuda":
        name = torch.cuda.get_device_name()
        known = next((flops for letters, flops in PEAKS.items() if letters in name), None)
        return {**facts, "processor": name, "dtype": "bfloat16", "peak_flops": peak or known}
    return {**facts, "processor": cpu_name(), "dtype": "float32", "peak_flops": peak}


def measure(options: argparse.Namespace, size: str) -> dict[str, Any]:
    """All measurements of a run."""
    cases = [case for case in CASES if any(case in PAIRS[name] for name in options.pairs)]
    held = {}
    for case in cases:
        print(f"memory: {case}", file=sys.stderr)
        held[case] = in_a_process(size, options.device, options.threads, case)
    facts = machine(options.device, options.threads, options.peak)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(SIZES[size], options.device, Path(folder))
        times, gains = measure_speed(bench, options.pairs, options.repeats)
        records = []
        for case in cases:
            seconds, batch = median(times[case]), bench.batch(case)
            flops = bench.operations(case) / seconds
            records.append(
                {
                    "case": case,
                    "seconds": seconds,
                    "runs": len(times[case]),
                    "tokens": int(batch["attention_mask"].sum()),
                    "positions": batch["labels"].numel(),
                    "answer_tokens": int((batch["labels"] != IGNORE_INDEX).sum()),
                    "tokens_a_second": int(batch["attention_mask"].sum()) / seconds,
                    "flops_a_second": flops,
                    "mfu": flops / facts["peak_flops"] if facts["peak_flops"] else None,
                    **held[case],
                }
            )
    found = {name: {"median": median(runs), "least": min(runs), "most": max(runs)} for name, runs in gains.items()}
    return {"machine": facts, "size": {"name": size, **asdict(SIZES[size])}, "cases": records, "times faster": found}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=4, help="rounds of a pair; attention has twice as many")
    parser.add_argument("--size", choices=SIZES, help="of the model; small on a CPU, 7b on a GPU if not given")
    parser.add_argument("--pairs", choices=PAIRS, nargs="+", default=list(PAIRS), help="what to measure")
    parser.add_argument("--peak", type=float, help="dense FLOP/s of the device, where it is not known by its name")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    size = options.size or ("7b" if options.device == "cuda" else "small")
    if options.measure:
        print(json.dumps(measure_memory(size, options.device, options.measure)))
        return
    result = measure(options, size)
    show(result, PAIRS)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"train_step-{options.device}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, path.with_suffix(".png"))


if __name__ == "__main__":
    main()

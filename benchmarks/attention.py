"""Speed and memory of the attention family against plain causal attention and the textbook form of `mmca`.

    python benchmarks/attention.py --threads 2                     # fp32, H=8, D=64; a few minutes
    python benchmarks/attention.py --device cuda                   # bf16, H=32, D=128, with flex

Every form is timed beside causal attention, one after the other, again and again: what counts is the median of their
ratios, so that what else the machine does falls on both. The least and the largest ratio stand beside it. Prints a
table; writes `attention-DEVICE.json` and `.png` to the results folder (with other than two threads on a CPU, their
number behind the name).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the commands do

import torch
from attention_report import document, draw, show
from common import cpu_name
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from visualchat.attention import attention_kind, multimodal_attention
from visualchat.attention.layout import Layout
from visualchat.attention.sdpa_plan import make_plan

# Each layout: dialogues packed into one row, each a list of stretches in tokens, text and image in turn, text first.
LAYOUTS: dict[str, list[list[int]]] = {
    "1 image": [[384, 256, 384]],
    "3 images": [[320, 256, 320, 256, 320, 256, 320]],
    "8 images": [[200, 256] * 8 + [200]],
    "8 images back to back": [[900] + [256, 0] * 7 + [256, 900]],
    "8 images, 4 packed dialogues": [[150, 256, 150, 256, 212]] * 4,
}
SLOW = ("textbook", "mmca_reference/sdpa")
"""Forms with dense masks: repeated less."""
LAYERS = 32
"""Layers of a decode step, each with a cache of its own; as many as LLaMA-2 7B has."""


@dataclass(frozen=True)
class Row:
    """One row of tokens: the ids of `multimodal_attention`, each (1, S)."""

    modality: Tensor
    units: Tensor
    segments: Tensor | None

    @property
    def length(self) -> int:
        return self.modality.shape[1]

    def images_first(self) -> Row:
        """The same tokens as a cache of the model holds them (`visualchat.model.images_first`)."""
        order = (self.modality == 0).to(torch.uint8).argsort(dim=1, stable=True)
        return Row(self.modality.gather(1, order), self.units.gather(1, order), None)

    def keywords(self, queries: int) -> dict[str, Tensor | None]:
        """The keywords of `multimodal_attention` for the last `queries` positions."""
        modality = {"query_modality": self.modality[:, self.length - queries :], "key_modality": self.modality}
        return {**modality, "image_ids": self.units, "unit_ids": self.units, "segment_ids": self.segments}


def make_row(dialogues: list[list[int]], image_tokens: int, device: str) -> Row:
    """The row of a layout, its stretches scaled so that an image has `image_tokens` tokens."""
    modality, units, segments, image = [], [], [], 0
    for number, stretches in enumerate(dialogues):
        for place, length in enumerate(stretches):
            count = length * image_tokens // 256
            is_image = place % 2 == 1
            modality += [int(is_image)] * count
            units += [image if is_image else -1] * count
            segments += [number] * count
            image += is_image
    tensors = (torch.tensor([values], device=device) for values in (modality, units, segments))
    row = Row(*tensors)
    return row if len(dialogues) > 1 else Row(row.modality, row.units, None)


def textbook(query: Tensor, key: Tensor, value: Tensor, modality: Tensor) -> Tensor:
    """`mmca` as it is written down: two softmaxes in float32 under dense masks, for all queries."""
    text = (modality == 0)[:, None]
    length = modality.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=query.device)
    own = text[..., None]  # (B, 1, S, 1)
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    out = 0.0
    for seen in (own & causal & text[:, :, None], torch.where(own, causal, itself) & ~text[:, :, None]):
        weights = scores.masked_fill(~seen, torch.finfo(torch.float32).min).softmax(-1)
        out = out + (weights * seen.any(-1, keepdim=True)).to(value.dtype) @ value
    return out


def forms(row: Row, implementations: tuple[str, ...]) -> dict[str, Callable[..., Tensor]]:
    """What is measured, by name; each takes query, key and value."""
    keywords = {queries: row.keywords(queries) for queries in (row.length, 1)}  # the same tensors for all layers

    def of_kind(kind: str, implementation: str) -> Callable[..., Tensor]:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            ids = keywords[query.shape[2]]
            return multimodal_attention(query, key, value, kind=kind, implementation=implementation, **ids)

        return attend

    def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=query.shape[2] > 1)

    found: dict[str, Callable[..., Tensor]] = {"causal": causal}
    if row.segments is not None:
        found["causal/sdpa"] = of_kind("causal", "sdpa")
    for kind in ("mmca", "mmca_joint", "unit", "label", "mmca_reference"):
        for implementation in implementations:
            found[f"{kind}/{implementation}"] = of_kind(kind, implementation)
    if row.segments is None:  # its masks know no packing
        found["textbook"] = lambda query, key, value: textbook(query, key, value, row.modality)
    return found


def computed_pairs(name: str, row: Row) -> float | None:
    """Query-key pairs whose scores a form computes in a forward pass over the row; None where a kernel decides."""
    length = row.length
    causal = length * (length + 1) / 2
    if name == "causal":
        return causal
    kind, _, implementation = name.partition("/")
    if implementation == "flex":
        return None
    if name in SLOW:
        return 2.0 * length**2
    layout = Layout(length, row.modality, None, row.units, row.units, row.segments)
    found = make_plan(attention_kind(kind), layout, torch.float32, mergeable=row.modality.device.type == "cpu")
    if found.parts is not None:
        pairs = sum(part.pairs for part in found.parts)
        pairs += sum(part.mask.bias.numel() for part in found.parts if part.mask is not None)
    else:
        text = found.text.length
        pairs = text * (text + 1) / 2
    if found.groups is not None:
        groups, size = found.groups.index.shape
        one = size * (size + 1) / 2 if found.groups.causal else size**2
        pairs += len(found.groups.masks) * groups * one
    return pairs


def seconds(run: Callable[[], Any], device: str) -> float:
    """How long one run takes, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Timing:
    """One form beside causal attention.

    Attributes:
        seconds: The median.
        ratios: Causal attention's time over the form's, of each pair.
    """

    seconds: float
    ratios: list[float]

    def record(self, name: str, times: float) -> dict[str, float]:
        """The median and the range of the ratios, and milliseconds of one of `times` equal parts."""
        spread = {"least": min(self.ratios), "most": max(self.ratios)}
        return {
            f"{name}_ms": self.seconds / times * 1e3,
            f"{name}_speedup": median(self.ratios),
            **{f"{name}_{which}": value for which, value in spread.items()},
        }


def paired(runs: dict[str, Callable[[], Any]], device: str, repeats: int) -> dict[str, Timing]:
    """Each run beside `causal`, in turn."""
    found = {}
    for name, run in runs.items():
        run()  # compilation, warm caches, and the plan, which all layers share
        times, ratios = [], []
        for _ in range(1 if name in SLOW else repeats):
            before = seconds(runs["causal"], device)
            times.append(seconds(run, device))
            ratios.append(before / times[-1])
        found[name] = Timing(median(times), ratios)
    return found


def peak_memory(run: Callable[[], Any], device: str) -> int:
    """Bytes that a run holds at its peak beyond what was held before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@dataclass(frozen=True)
class Setting:
    """What all measurements of a run share."""

    device: str
    dtype: torch.dtype
    heads: int
    head_size: int
    repeats: int
    implementations: tuple[str, ...]

    def tensor(self, length: int) -> Tensor:
        """(1, H, length, D), laid out as transformers' models lay it out: (1, length, H, D) in memory."""
        made = torch.randn(1, length, self.heads, self.head_size, device=self.device, dtype=self.dtype)
        return made.transpose(1, 2)


def training_runs(row: Row, setting: Setting) -> dict[str, Callable[[], None]]:
    """Forward and backward of every form."""
    qkv = [setting.tensor(row.length).requires_grad_() for _ in range(3)]
    upstream = setting.tensor(row.length)

    def step(attend: Callable[..., Tensor]) -> None:
        torch.autograd.grad(attend(*qkv), qkv, upstream)

    return {name: lambda attend=attend: step(attend) for name, attend in forms(row, setting.implementations).items()}


def forward_runs(row: Row, setting: Setting) -> dict[str, Callable[[], None]]:
    """A forward pass of every form over the row."""
    query, key, value = (setting.tensor(row.length) for _ in range(3))
    attends = forms(row, setting.implementations)
    return {name: lambda attend=attend: attend(query, key, value) for name, attend in attends.items()}


def decode_runs(row: Row, setting: Setting) -> dict[str, Callable[[], None]]:
    """A decode step of every form on a cache of the row: `LAYERS` layers, which share one plan."""
    query = setting.tensor(1)
    cache = [tuple(setting.tensor(row.length).contiguous() for _ in range(2)) for _ in range(LAYERS)]

    def step(attend: Callable[..., Tensor]) -> None:
        for key, value in cache:
            attend(query, key, value)

    attends = forms(row.images_first(), setting.implementations)
    return {name: lambda attend=attend: step(attend) for name, attend in attends.items() if name != "textbook"}


def measure_layouts(setting: Setting, image_tokens: int) -> list[dict[str, Any]]:
    """A record for each layout and form: milliseconds, times faster than causal, pairs, bytes."""
    records = []
    for layout, dialogues in LAYOUTS.items():
        row = make_row(dialogues, image_tokens, setting.device)
        with torch.no_grad():
            forward = paired(forward_runs(row, setting), setting.device, setting.repeats)
            decode = {}
            if row.segments is None:  # nothing is generated in packed rows
                decode = paired(decode_runs(row, setting), setting.device, 2 * setting.repeats)
        runs = training_runs(row, setting)
        training = paired(runs, setting.device, setting.repeats)
        for name, run in runs.items():
            pairs = computed_pairs(name, row)
            records.append(
                {
                    "layout": layout,
                    "tokens": row.length,
                    "image_tokens": int(row.modality.sum()),
                    "form": name,
                    **forward[name].record("forward", 1),
                    **training[name].record("training", 1),
                    **(decode[name].record("decode", LAYERS) if name in decode else {}),
                    "decode_cost": 1 / median(decode[name].ratios) if name in decode else None,
                    "pairs": pairs,
                    "pairs_speedup": None if pairs is None else computed_pairs("causal", row) / pairs,
                    "extra_bytes": peak_memory(run, setting.device),
                }
            )
    return records


def measure_memory(setting: Setting, image_tokens: int) -> list[dict[str, Any]]:
    """Peak extra bytes of forward and backward as a dialogue of eight images grows eightfold."""
    records = []
    for share in (8, 4, 2, 1):
        row = make_row(LAYOUTS["8 images"], image_tokens // share, setting.device)
        runs = training_runs(row, setting)
        for name in ("causal", "mmca/sdpa", "textbook"):
            runs[name]()
            records.append({"tokens": row.length, "form": name, "extra_bytes": peak_memory(runs[name], setting.device)})
    return records


def machine(setting: Setting) -> dict[str, Any]:
    """What the numbers were measured on; no names, no paths."""
    name = torch.cuda.get_device_name() if setting.device == "cuda" else cpu_name()
    shape = {"dtype": str(setting.dtype).removeprefix("torch."), "heads": setting.heads, "head_size": setting.head_size}
    run = {"threads": torch.get_num_threads(), "repeats": setting.repeats, "batch": 1}
    run |= {"waiting": os.environ["OMP_WAIT_POLICY"]}
    return {"device": setting.device, "processor": name, "torch": torch.__version__, **shape, **run}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--image-tokens", type=int, default=256, help="tokens an image; text scales with it")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--document", type=Path, help="a Markdown file to put the table into, between its marks")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cuda = options.device == "cuda"
    setting = Setting(
        device=options.device,
        dtype=torch.bfloat16 if cuda else torch.float32,
        heads=32 if cuda else 8,
        head_size=128 if cuda else 64,
        repeats=options.repeats,
        implementations=("sdpa", "flex") if cuda else ("sdpa",),
    )
    result = {
        "machine": machine(setting),
        "layouts": measure_layouts(setting, options.image_tokens),
        "memory": measure_memory(setting, options.image_tokens),
    }
    show(result)
    options.output.mkdir(parents=True, exist_ok=True)
    threads = "" if cuda or options.threads == 2 else f"-{options.threads}"
    path = options.output / f"attention-{options.device}{threads}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, list(LAYOUTS), path.with_suffix(".png"))
    if options.document is not None:
        document(result, options.document)


if __name__ == "__main__":
    main()

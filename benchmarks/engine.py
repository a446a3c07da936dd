"""What batching conversations is worth: tokens a second of 1, 4, 16 and 64 sessions on one model, on one thread.

    python benchmarks/engine.py                  some minutes; the tiny world's model, 1 to 4 images a conversation
    python benchmarks/engine.py --repeats 1 --sessions 1 2 --tokens 4 --kinds mmca        a small run

CPU time of this process, all ways in turn in each repeat; figures are medians, ratios are medians of the repeats' own
ratios. `apart` is what a `ChatSession` does: one conversation after the other. The second
measurement is the longest time between two tokens of an answer while a long prompt arrives. Writes
benchmarks/results/engine-cpu.json and .png, and prints tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import cpu_name
from transformers import AutoImageProcessor

from chat import Talk, pictures
from visualchat.engine import Engine, Handle, Request
from visualchat.engine.answering import Answerer
from visualchat.engine.image_store import ImageStore
from visualchat.engine.sampling import Samplers
from visualchat.model import VisualChatForConditionalGeneration
from visualchat.tiny import backbone

RESULTS = Path(__file__).parent / "results" / "engine-cpu.json"
BEFORE, LABEL, QUESTION, SIDE = 20, 8, 30, 64
"""Tokens of the text before the images, of a label and of the question; pixels of an image's side."""

NEVER = 0
"""An end token that is not generated: the padding of the tiny world's tokenizer."""

LONG = 1500
"""Tokens of the long prompt."""

KINDS = {
    "numbered": ("mmca_joint", "learned"),
    "mmca": ("mmca", "none"),
    "unit": ("unit", "none"),
    "causal": ("causal", "none"),
}
"""Attention and image numbers."""


def make_model(kind: str) -> VisualChatForConditionalGeneration:
    """The tiny world's backbones, joined by an untrained projector."""
    attention, numbers = KINDS[kind]
    torch.manual_seed(0)
    return VisualChatForConditionalGeneration.from_backbones(
        backbone("vision"),
        backbone("language_mixed"),
        attention_kind=attention,
        image_numbers=numbers,
        image_seq_length=16,
    )


def stub() -> Any:
    """A processor that knows images alone."""
    return SimpleNamespace(
        image_processor=AutoImageProcessor.from_pretrained(backbone("vision")),
        tokenizer=None,
        end_token_ids=[NEVER],
        image_seq_length=16,
    )


def request(number: int, answer: int, size: int, more: int = 0) -> Request:
    """A conversation of random tokens with one to four images, and so many tokens of further text."""
    talk, images = Talk(size, number), 1 + number % 4
    talk.text(BEFORE + more)
    for _ in range(images):
        talk.image(LABEL)
    talk.text(QUESTION)
    talk.tokens.ids[:] = [3 + token % 400 for token in talk.tokens.ids]  # words of the tiny world
    return Request(talk.tokens, pictures(images, SIDE), max_new_tokens=answer)


def steps(engine: Engine, count: int) -> list[float]:
    """Seconds of CPU time of each."""
    found = []
    for _ in range(count):
        begun = time.process_time()
        engine.step()
        found.append(time.process_time() - begun)
    return found


def submitted(engine: Engine, count: int, answer: int) -> list[Handle]:
    """So many answers that have begun."""
    size = engine.model.config.image_seq_length
    handles = [engine.submit(request(number, answer, size)) for number in range(count)]
    for handle in handles:
        next(iter(handle))
    return handles


def batched(model: VisualChatForConditionalGeneration, count: int, tokens: int) -> float:
    """Tokens a second of so many sessions, prompts apart."""
    engine = Engine(model, stub(), max_running=count, chunk=10**6)
    handles = submitted(engine, count, tokens + 10)
    before = sum(len(handle.said) for handle in handles)
    seconds = sum(steps(engine, tokens))
    return (sum(len(handle.said) for handle in handles) - before) / seconds


def apart(model: VisualChatForConditionalGeneration, tokens: int) -> float:
    """Tokens a second of one session, its prompt apart; several in turn are no faster."""
    answerer, asked = Answerer(model, stub(), ImageStore()), request(1, tokens + 1, model.config.image_seq_length)
    cache, sampler = answerer.new_cache(), Samplers(model, NEVER)(asked)
    token = sampler.choose(answerer.prefill(asked.tokens, [*asked.images], cache))
    begun = time.process_time()
    for _ in range(tokens):
        token = sampler.choose(answerer.following(token, cache))
    return tokens / (time.process_time() - begun)


def stall(model: VisualChatForConditionalGeneration, chunk: int, count: int = 4) -> float:
    """The longest step, ms, of so many answers while a long prompt arrives that is computed in such chunks."""
    engine = Engine(model, stub(), max_running=count + 1, chunk=chunk)
    submitted(engine, count, 10**3)
    long = engine.submit(request(0, 1, model.config.image_seq_length, more=LONG))
    longest = 0.0
    while long.finish is None:
        longest = max(longest, *steps(engine, 1))
    return 1000 * longest


def measure(setting: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    machine = {"processor": cpu_name(), "threads": 1, "torch": version("torch")}
    found: dict[str, Any] = {"machine": machine, "tokens": setting.tokens, "repeats": setting.repeats, "kinds": {}}
    for kind in setting.kinds:
        model = make_model(kind)
        rates: dict[str, list[float]] = {}
        stalls: dict[str, list[float]] = {}
        for repeat in range(setting.repeats + 1):
            taken = {"apart": apart(model, setting.tokens)}
            taken |= {str(count): batched(model, count, setting.tokens) for count in setting.sessions}
            waited = {str(chunk): stall(model, chunk) for chunk in setting.chunks}
            for all_, new in ((rates, taken), (stalls, waited)):
                for name, value in new.items() if repeat else ():  # the first warms up
                    all_.setdefault(name, []).append(value)
        one = rates[str(setting.sessions[0])]
        found["kinds"][kind] = {
            "tokens a second": {name: statistics.median(values) for name, values in rates.items()},
            "by one session": {
                name: statistics.median(v / o for v, o in zip(values, one, strict=True))
                for name, values in rates.items()
            },
            "longest step, ms, by chunk": {name: statistics.median(values) for name, values in stalls.items()},
        }
    return found


def tables(result: dict[str, Any]) -> str:
    """For a document."""
    first = next(iter(result["kinds"].values()))
    names, chunks = [*first["tokens a second"]], [*first["longest step, ms, by chunk"]]
    lines = [f"| tokens a second | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for kind, found in result["kinds"].items():
        cells = [f"{found['tokens a second'][n]:.0f} ({found['by one session'][n]:.1f})" for n in names]
        lines.append(f"| `{kind}` | {' | '.join(cells)} |")
    lines += ["", f"| longest step, ms | {' | '.join(chunks)} |", "|---|" + "---:|" * len(chunks)]
    for kind, found in result["kinds"].items():
        cells = [f"{found['longest step, ms, by chunk'][n]:.0f}" for n in chunks]
        lines.append(f"| `{kind}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Tokens a second by sessions, and the longest step by chunk."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for kind, found in result["kinds"].items():
        rates = {name: rate for name, rate in found["tokens a second"].items() if name != "apart"}
        left.plot([*map(int, rates)], [*rates.values()], marker="o", label=kind)
        stalls = found["longest step, ms, by chunk"]
        right.plot([*map(int, stalls)], [*stalls.values()], marker="o", label=kind)
    for axes, x, y in (
        (left, "sessions on one model", "tokens a second"),
        (right, "chunk, tokens", f"longest step, ms, while {LONG} tokens arrive"),
    ):
        axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
        axes.set_xticks([int(line) for line in axes.get_lines()[0].get_xdata()])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:.0f}")
        axes.minorticks_off()
    left.legend()
    figure.suptitle(f"{result['machine']['processor']}, one thread; the tiny world's model", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


@torch.no_grad()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--chunks", type=int, nargs="+", default=[64, 256, 2048])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--output", type=Path, default=RESULTS)
    setting = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(setting)
    setting.output.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, setting.output.with_suffix(".png"))
    print(tables(result))


if __name__ == "__main__":
    main()

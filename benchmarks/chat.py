"""What reuse of images is worth: CPU time until the first token of an answer, on one thread.

    python benchmarks/chat.py                some minutes; LLaMA of 4 layers x 256, 256 tokens an image
    python benchmarks/chat.py --repeats 1 --rounds 3 --layers 1 --image-side 32      a small run

Each repeat measures all ways one after the other; figures are medians, ratios are medians of the repeats' own ratios.
Random weights, random tokens, random pictures: what is computed depends on none of them. Writes
benchmarks/results/chat-cpu.json and prints tables.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from visualchat.chat.answering import Answerer, Tokens
from visualchat.chat.image_store import ImageStore
from visualchat.model import VisualChatForConditionalGeneration
from visualchat.model.configuration_visualchat import VisualChatConfig

RESULTS = Path(__file__).parent / "results" / "chat-cpu.json"
VOCABULARY, LABEL, BEFORE, QUESTION, ANSWER = 1000, 8, 60, 32, 16
"""Sizes in tokens: of a label, of the text before the images, of a question, of an answer."""

KINDS = {"numbered": ("mmca_joint", "learned"), "mmca": ("mmca", "none"), "unit": ("unit", "none")}


def make_model(kind: str, layers: int, side: int) -> VisualChatForConditionalGeneration:
    """A random model whose pictures of `side` pixels take (side / 8)² tokens."""
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=side, patch_size=8
    )
    language = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=VOCABULARY,
        max_position_embeddings=8192,
    )
    attention, numbers = KINDS.get(kind, (kind, "none"))
    config = VisualChatConfig(
        vision_config=vision,
        text_config=language,
        attention_kind=attention,
        image_numbers=numbers,
        image_seq_length=(side // 8) ** 2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    return VisualChatForConditionalGeneration(config).eval()


def answerer(model: VisualChatForConditionalGeneration, side: int, *, stored: bool = True) -> Answerer:
    """With an empty store, or for images in their place."""
    processor: Any = SimpleNamespace(
        image_processor=CLIPImageProcessorPil(
            size={"height": side, "width": side}, crop_size={"height": side, "width": side}
        )
    )
    found = Answerer(model, processor, ImageStore())
    if not stored:
        found.why_not_stored = "for comparison"
    return found


class Talk:
    """Tokens of a conversation as they grow."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.random = size, random.Random(seed)
        self.tokens = Tokens([], [], [])
        self.images = 0

    def text(self, count: int) -> None:
        """So many random tokens."""
        self._add([self.random.randrange(VOCABULARY) for _ in range(count)], 0, -1)

    def image(self) -> None:
        """The next image, behind its label."""
        self.images += 1
        self._add([self.images] * LABEL, 0, self.images)
        self._add([0] * self.size, 1, self.images)

    def _add(self, ids: list[int], modality: int, unit: int) -> None:
        old = self.tokens
        self.tokens = Tokens(old.ids + ids, old.modality + [modality] * len(ids), old.units + [unit] * len(ids))


def pictures(count: int, side: int) -> list[Image.Image]:
    """Noise."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def milliseconds(run: Callable[[], Any]) -> float:
    """CPU time of this process."""
    begun = time.process_time()
    run()
    return 1000 * (time.process_time() - begun)


def twin(cache: Any) -> Any:
    """A cache that grows on its own."""
    found = copy.copy(cache)
    found.layers = [copy.copy(layer) for layer in cache.layers]
    return found


def prompt(model: VisualChatForConditionalGeneration, seed: int, images: int) -> tuple[Tokens, Tokens]:
    """A text and so many images; and the same with a question."""
    talk = Talk(model.config.image_seq_length, seed)
    talk.text(BEFORE)
    for _ in range(images):
        talk.image()
    prefix = talk.tokens
    talk.text(QUESTION)
    return prefix, talk.tokens


def new_conversation(kind: str, setting: argparse.Namespace) -> dict[str, list[float]]:
    """A prompt with known images in a new order, after another text, in each way."""
    model = make_model(kind, setting.layers, setting.image_side)
    ours = answerer(model, setting.image_side)
    plain = answerer(model, setting.image_side, stored=False)
    causal = answerer(make_model("causal", setting.layers, setting.image_side), setting.image_side, stored=False)
    images = pictures(setting.images, setting.image_side)
    found: dict[str, list[float]] = {}
    for turn in range(len(images)):  # each becomes known, and as every number where the number matters
        ours.prefill(prompt(model, -1, len(images))[1], images[turn:] + images[:turn], ours.new_cache())
    for repeat in range(setting.repeats + 1):
        prefix, tokens = prompt(model, repeat, len(images))
        shuffled = random.Random(repeat).sample(images, len(images))
        hit = ours.new_cache()
        ours.prefill(prefix, shuffled, hit)
        empty = answerer(model, setting.image_side)
        runs = {
            "known images": partial(ours.prefill, tokens, shuffled, ours.new_cache()),
            "prefix hit": partial(ours.prefill, tokens, [], twin(hit)),
            "new images": partial(empty.prefill, tokens, shuffled, empty.new_cache()),
            "computed in one pass": partial(plain.prefill, tokens, shuffled, plain.new_cache()),
            "causal, computed in one pass": partial(causal.prefill, tokens, shuffled, causal.new_cache()),
        }
        before = ours.store.stats.misses
        for name, run in runs.items():
            taken = milliseconds(run)
            if repeat:  # the first warms up
                found.setdefault(name, []).append(taken)
        assert ours.store.stats.misses == before
    return found


def rounds(kind: str, setting: argparse.Namespace) -> dict[str, list[list[float]]]:
    """By way, the times of each round, repeat by repeat: the images in the first round, equal text in all others."""
    model = make_model(kind, setting.layers, setting.image_side)
    ours, plain = answerer(model, setting.image_side), answerer(model, setting.image_side, stored=False)
    images = pictures(setting.images, setting.image_side)
    found: dict[str, list[list[float]]] = {"session": [], "prefix reuse": [], "recomputed": []}
    for repeat in range(setting.repeats):
        talk = Talk(model.config.image_seq_length, repeat)
        talk.text(BEFORE)
        for _ in images:
            talk.image()
        times: dict[str, list[float]] = {name: [] for name in found}
        caches = {"session": ours.new_cache(), "prefix reuse": plain.new_cache()}
        for number in range(setting.rounds):
            talk.text(QUESTION)
            new = images if number == 0 else []
            for name, way in (("session", ours), ("prefix reuse", plain)):
                times[name].append(milliseconds(partial(way.prefill, talk.tokens, new, caches[name])))
            whole = partial(plain.prefill, talk.tokens, images, plain.new_cache())
            times["recomputed"].append(milliseconds(whole))
            talk.text(ANSWER)
            for name, way in (("session", ours), ("prefix reuse", plain)):
                way.prefill(talk.tokens, [], caches[name])
        for name, values in times.items():
            found[name].append(values)
    return found


def measure(setting: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    machine = {"processor": platform.processor(), "threads": 1, "torch": version("torch")}
    sizes = {"layers": setting.layers, "image tokens": (setting.image_side // 8) ** 2, "images": setting.images}
    result: dict[str, Any] = {"machine": machine, **sizes, "repeats": setting.repeats, "kinds": {}}
    for kind in KINDS:
        found = new_conversation(kind, setting)
        ratio = {
            name: statistics.median(k / o for k, o in zip(found["known images"], times, strict=True))
            for name, times in found.items()
        }
        talks = rounds(kind, setting)
        result["kinds"][kind] = {
            "ms": {name: statistics.median(times) for name, times in found.items()},
            "known images by each": ratio,
            "ms by round": {
                name: [statistics.median(column) for column in zip(*repeats, strict=True)]
                for name, repeats in talks.items()
            },
            "last round by second": {
                name: statistics.median(repeat[-1] / repeat[1] for repeat in repeats) for name, repeats in talks.items()
            },
        }
    return result


def tables(result: dict[str, Any]) -> str:
    """For a document."""
    names = [*next(iter(result["kinds"].values()))["ms"]]
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for kind, found in result["kinds"].items():
        ratios = [f"{found['known images by each'][name]:.2f}" for name in names]
        lines.append(f"| `{kind}` | {' | '.join(ratios)} |")
    lines += ["", "| | round 2 | last round | ratio |", "|---|---:|---:|---:|"]
    for kind, found in result["kinds"].items():
        for name, times in found["ms by round"].items():
            ratio = found["last round by second"][name]
            lines.append(f"| `{kind}`, {name} | {times[1]:.1f} | {times[-1]:.1f} | {ratio:.2f} |")
    return "\n".join(lines)


@torch.no_grad()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("repeats", 7), ("rounds", 20), ("layers", 4), ("images", 8), ("image-side", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path, default=RESULTS)
    setting = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(setting)
    setting.output.write_text(json.dumps(result, indent=1) + "\n")
    print(tables(result))


if __name__ == "__main__":
    main()

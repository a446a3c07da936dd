"""What reuse of images is worth: CPU time until the first token of an answer, on one thread.

    python benchmarks/chat.py                some minutes; LLaMA of 4 layers x 256, 256 tokens an image
    python benchmarks/chat.py --repeats 1 --rounds 3 --layers 1 --image-side 32      a small run

Each repeat measures all ways one after the other; figures are medians, ratios are medians of the repeats' own ratios.
Random weights, random tokens, random pictures: what is computed depends on none of them. Beside time: what a causal
model's answers lose if its images are computed alone and turned to their places, which costs as little. Writes
benchmarks/results/chat-cpu.json and docs/images/chat.png, and prints the tables of docs/chat.md.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from chat_report import draw, tables
from common import cpu_name
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from visualchat.engine.answering import Answerer, Tokens
from visualchat.engine.image_store import ImageStore
from visualchat.model import VisualChatForConditionalGeneration
from visualchat.model.configuration_visualchat import VisualChatConfig
from visualchat.model.image_states import in_place, unit_states, units_from

ROOT = Path(__file__).resolve().parents[1]
RESULTS, FIGURE = ROOT / "benchmarks" / "results" / "chat-cpu.json", ROOT / "docs" / "images" / "chat.png"
VOCABULARY, ANSWER, CONTINUED = 1000, 16, 32
"""Tokens: that there are, of an answer in a conversation, of an answer that is compared."""


@dataclass(frozen=True)
class Case:
    """A prompt, in tokens.

    Attributes:
        before: Of the text before the images.
        shared: Whether that text is the same in every conversation.
        label: Of an image's label.
        question: Of the question.
    """

    before: int
    shared: bool
    label: int
    question: int


CASES = {"another text before": Case(60, False, 8, 32), "the same system text": Case(60, True, 4, 128)}
KINDS = {
    "numbered": ("mmca_joint", "learned", 8),
    "numbered, grouped heads": ("mmca_joint", "learned", 2),
    "mmca": ("mmca", "none", 8),
    "unit": ("unit", "none", 8),
}
"""Attention, image numbers and key heads, of 8 heads."""


def make_model(kind: str, layers: int, side: int, key_heads: int | None = None) -> VisualChatForConditionalGeneration:
    """A random model of a kind, or of a name in `KINDS`."""
    attention, numbers, own_heads = KINDS.get(kind, (kind, "none", 8))
    return model_of(layers, side, key_heads or own_heads, attention_kind=attention, image_numbers=numbers)


def model_of(layers: int, side: int, key_heads: int = 8, **attention: Any) -> VisualChatForConditionalGeneration:
    """A random model whose pictures of `side` pixels take (side / 8)² tokens; `attention` is of its configuration."""
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=side, patch_size=8
    )
    language = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=key_heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=8192,
    )
    config = VisualChatConfig(
        vision_config=vision,
        text_config=language,
        image_seq_length=(side // 8) ** 2,
        vision_feature_select_strategy="default",
        **attention,
    )
    torch.manual_seed(0)
    return VisualChatForConditionalGeneration(config).eval()


def answerer(model: VisualChatForConditionalGeneration, side: int, *, stored: bool = True) -> Answerer:
    """With an empty store, or for images in their place."""
    found = Answerer(model, processor_of(side), ImageStore())
    if not stored:
        found.why_not_stored = "for comparison"
    return found


def processor_of(side: int) -> Any:
    """What an `Answerer` needs of a processor."""
    size = {"height": side, "width": side}
    return SimpleNamespace(image_processor=CLIPImageProcessorPil(size=size, crop_size=size))


class Talk:
    """Tokens of a conversation as they grow."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.random = size, random.Random(seed)
        self.tokens = Tokens([], [], [])
        self.images = 0

    def text(self, count: int) -> None:
        """So many random tokens."""
        self._add([self.random.randrange(VOCABULARY) for _ in range(count)], 0, -1)

    def image(self, label: int) -> None:
        """The next image, behind its label of so many tokens."""
        self.images += 1
        self._add([self.images] * label, 0, self.images)
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


def prompt(model: VisualChatForConditionalGeneration, case: Case, seed: int, images: int) -> tuple[Tokens, Tokens]:
    """A text and so many images; and the same with a question."""
    slots = 1 if model.config.images_outside else model.config.image_seq_length
    talk = Talk(slots, 0 if case.shared else seed)
    talk.text(case.before)
    for _ in range(images):
        talk.image(case.label)
    prefix = talk.tokens
    talk.random.seed(seed)
    talk.text(case.question)
    return prefix, talk.tokens


def new_conversation(kind: str, case: Case, setting: argparse.Namespace) -> dict[str, list[float]]:
    """A prompt with known images in a new order, in each way."""
    model = make_model(kind, setting.layers, setting.image_side)
    ours = answerer(model, setting.image_side)
    plain = answerer(model, setting.image_side, stored=False)
    heads = model.config.text_config.num_key_value_heads
    causal = answerer(make_model("causal", setting.layers, setting.image_side, heads), setting.image_side, stored=False)
    images = pictures(setting.images, setting.image_side)
    found: dict[str, list[float]] = {}
    for turn in range(len(images)):  # each becomes known, and as every number where the number matters
        ours.prefill(prompt(model, case, -1, len(images))[1], images[turn:] + images[:turn], ours.new_cache())
    for repeat in range(setting.repeats + 1):
        prefix, tokens = prompt(model, case, repeat, len(images))
        shuffled = random.Random(repeat).sample(images, len(images))
        before = ours.store.stats.misses
        taken = {"known images": milliseconds(partial(ours.prefill, tokens, shuffled, ours.new_cache()))}
        hit, filled = ours.new_cache(), ours.new_cache()
        ours.prefill(prefix, shuffled, hit)
        places = ours.insert(tokens, shuffled, filled)
        assert ours.store.stats.misses == before
        empty = answerer(model, setting.image_side)
        runs = {
            "prefix hit": partial(ours.prefill, tokens, [], hit),
            "their text alone": partial(ours.compute, tokens, places, filled),
            "new images": partial(empty.prefill, tokens, shuffled, empty.new_cache()),
            "computed in one pass": partial(plain.prefill, tokens, shuffled, plain.new_cache()),
            "causal, computed in one pass": partial(causal.prefill, tokens, shuffled, causal.new_cache()),
        }
        taken |= {name: milliseconds(run) for name, run in runs.items()}
        for name, time_taken in taken.items():
            if repeat:  # the first warms up
                found.setdefault(name, []).append(time_taken)
    return found


def continued(way: Answerer, tokens: Tokens, cache: Any, logits: Tensor, given: list[int] | None) -> Tensor:
    """Logits (n, V) of an answer's tokens, the first of them known; the answer is given, or the likeliest tokens."""
    rows = [logits]
    for place in range(CONTINUED - 1):
        token = int(rows[-1].argmax()) if given is None else given[place]
        tokens = Tokens([*tokens.ids, token], [*tokens.modality, 0], [*tokens.units, -1])
        rows.append(way.prefill(tokens, [], cache))
    return torch.cat(rows)


def compared(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """The largest difference of logits, in their standard deviations; the share of equal likeliest tokens."""
    alike = (found.argmax(-1) == expected.argmax(-1)).double().mean()
    return float((found - expected).abs().max() / expected.std()), float(alike)


def exactness(setting: argparse.Namespace) -> dict[str, dict[str, float]]:
    """How far answers over known images are from those of one pass: ours, and a causal model's with images turned.

    The causal model's images are computed alone; its text attends to them as causal attention does, which is what the
    same weights do under `mmca_joint`.
    """
    side, case = setting.image_side, CASES["another text before"]
    causal, twin, ours = (
        answerer(make_model(kind, setting.layers, side), side) for kind in ("causal", "mmca_joint", "numbered")
    )
    twin.model.load_state_dict(causal.model.state_dict())
    plain = answerer(ours.model, side, stored=False)
    images = pictures(setting.images, side)
    found: dict[str, list[tuple[float, float]]] = {"numbered, known images": [], "causal, images turned": []}
    for repeat in range(setting.repeats):
        _, tokens = prompt(ours.model, case, repeat, len(images))
        shuffled = random.Random(repeat).sample(images, len(images))
        expected = {}
        for name, way in (("numbered, known images", plain), ("causal, images turned", causal)):
            cache = way.new_cache()
            expected[name] = continued(way, tokens, cache, way.prefill(tokens, shuffled, cache), None)
        ours.prefill(tokens, shuffled, ours.new_cache())
        units = units_from(causal.model, tokens.ids, tokens.modality, tokens.units, 0)
        pairs = zip(units, shuffled, strict=True)
        alone = [unit_states(causal.model, unit, causal.pixels([image])) for unit, image in pairs]
        known, turned = ours.new_cache(), twin.new_cache()
        turned.insert(in_place(causal.model, units, alone), torch.tensor(tokens.modality))
        first = {
            "numbered, known images": (ours, known, ours.prefill(tokens, shuffled, known)),
            "causal, images turned": (
                twin,
                turned,
                twin.compute(tokens, turned.order[0, turned.get_seq_length() :], turned),
            ),
        }
        for name, (way, cache, logits) in first.items():
            answer = expected[name].argmax(-1).tolist()
            found[name].append(compared(continued(way, tokens, cache, logits, answer), expected[name]))
    return {
        name: {
            "largest difference of logits": max(difference for difference, _ in pairs),
            "tokens alike": statistics.mean(alike for _, alike in pairs),
        }
        for name, pairs in found.items()
    }


def rounds(kind: str, setting: argparse.Namespace) -> dict[str, list[list[float]]]:
    """By way, the times of each round, repeat by repeat: the images in the first round, equal text in all others."""
    model = make_model(kind, setting.layers, setting.image_side)
    ours, plain = answerer(model, setting.image_side), answerer(model, setting.image_side, stored=False)
    images = pictures(setting.images, setting.image_side)
    case = CASES["another text before"]
    found: dict[str, list[list[float]]] = {"session": [], "prefix reuse": [], "recomputed": []}
    for repeat in range(setting.repeats):
        talk = Talk(model.config.image_seq_length, repeat)
        talk.text(case.before)
        for _ in images:
            talk.image(case.label)
        times: dict[str, list[float]] = {name: [] for name in found}
        caches = {"session": ours.new_cache(), "prefix reuse": plain.new_cache()}
        for number in range(setting.rounds):
            talk.text(case.question)
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


def bytes_of_an_image(kind: str, setting: argparse.Namespace) -> int:
    """What a store keeps of an image."""
    ours = answerer(make_model(kind, setting.layers, setting.image_side), setting.image_side)
    tokens = prompt(ours.model, CASES["another text before"], 0, 1)[1]
    unit = units_from(ours.model, tokens.ids, tokens.modality, tokens.units, 0)[0]
    return unit_states(ours.model, unit, ours.pixels(pictures(1, setting.image_side))).nbytes


def measure(setting: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    machine = {"processor": cpu_name(), "threads": 1, "torch": version("torch")}
    sizes = {"layers": setting.layers, "image tokens": (setting.image_side // 8) ** 2, "images": setting.images}
    result: dict[str, Any] = {"machine": machine, **sizes, "repeats": setting.repeats, "kinds": {}}
    for kind in KINDS:
        cases = {}
        for name, case in CASES.items():
            found = new_conversation(kind, case, setting)
            known = found["known images"]
            cases[name] = {
                "ms": {name: statistics.median(times) for name, times in found.items()},
                "known images by each": {
                    name: statistics.median(k / o for k, o in zip(known, times, strict=True))
                    for name, times in found.items()
                },
            }
        talks = rounds(kind, setting)
        result["kinds"][kind] = {
            "new conversation": cases,
            "bytes of an image": bytes_of_an_image(kind, setting),
            "ms by round": {
                name: [statistics.median(column) for column in zip(*repeats, strict=True)]
                for name, repeats in talks.items()
            },
            "last round by second": {
                name: statistics.median(repeat[-1] / repeat[1] for repeat in repeats) for name, repeats in talks.items()
            },
        }
    result["exactness"] = exactness(setting)
    return result


@torch.no_grad()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("repeats", 5), ("rounds", 20), ("layers", 4), ("images", 8), ("image-side", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    setting = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(setting)
    setting.output.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, setting.figure)
    print(tables(result))


if __name__ == "__main__":
    main()

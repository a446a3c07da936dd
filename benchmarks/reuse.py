"""What known images save and what that costs: time to the first token beside exact match, in every way of knowing them.

    python benchmarks/reuse.py causal=outputs/studies/hops/causal-1a2b3c numbered=outputs/studies/hops/numbered-4d5e6f
    python benchmarks/reuse.py                            the page again, from what is kept
    python benchmarks/reuse.py causal=... --dialogues 20 --repeats 1 --layers 2 --image-side 32 --results elsewhere

A model is an arm of a study, `NAME=FOLDER` with FOLDER/SEED/light of every seed, as `visualchat-study` leaves them. All
its ways (`reuse_ways.py`) answer the study's questions with hops, given the true answers before, with states that are
put in place, one dialogue at a time. Time is that of random models of the same attention at a size where it means
something, on one thread, all ways in turn. Beside the page what it is made of is kept and not computed again: every
answer (reuse/answers.jsonl.xz) and all times (reuse/times.json).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import cpu_name
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from reuse_report import write_page
from reuse_ways import Way, ways_of

from chat import CASES, answerer, milliseconds, model_of, pictures, processor_of
from chat import prompt as random_prompt
from visualchat.cli.config import silence_libraries
from visualchat.cli.provenance import PACKAGE, code_state
from visualchat.dialogue import Dialogue
from visualchat.engine.answering import Tokens
from visualchat.evaluation.predictions import questions
from visualchat.images.decode import decode_image
from visualchat.model import VisualChatProcessor
from visualchat.model.configuration_visualchat import ATTENTION
from visualchat.model.light import CARD, load_light
from visualchat.studies import kept as keeping
from visualchat.studies.kept import Kept, Question, Run
from visualchat.studies.running import FIGURES, MODEL

ROOT = Path(__file__).resolve().parents[1]
RESULTS, EVALUATION = ROOT / "docs" / "results", ROOT / "conf" / "evaluation" / "tiny_hops.yaml"
CASE = "the same system text"
SCORED, TIMED = 64 << 20, 2 << 30
"""Bytes that are kept of images: while dialogues are scored, whose images rarely come again; while ways are timed."""
FIELDS = (*ATTENTION, "cross_attention_every")
"""Of a configuration, what the timed model has in common with the trained one."""


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        name: As typed.
        seed: Of its training.
        folder: Its light folder.
    """

    name: str
    seed: int
    folder: Path

    @property
    def weights(self) -> str:
        """What tells them from others."""
        return str(json.loads((self.folder / CARD).read_text())["sha256"])


def trained_models(typed: Sequence[str]) -> list[Trained]:
    """The finished runs of arms that are typed as NAME=FOLDER, seed by seed.

    Raises:
        ValueError: An argument is something else, or its folder has no such run.
    """
    found: list[Trained] = []
    for argument in typed:
        name, _, folder = argument.partition("=")
        if not name or not folder:
            raise ValueError(f"{argument}: expected NAME=FOLDER, as causal=outputs/studies/hops/causal-1a2b3c")
        runs = [path for path in Path(folder).glob(f"*/{MODEL}") if path.parent.name.isdigit()]
        finished = [path for path in runs if (path.parent / FIGURES).is_file()]
        for path in sorted({*runs} - {*finished}):
            print(f"left out, its run is not finished: {path}")
        if not finished:
            raise ValueError(f"{argument}: found no finished run; expected FOLDER/SEED/{MODEL} of visualchat-study")
        found += [Trained(name, int(path.parent.name), path) for path in finished]
    if len({(model.name, model.seed) for model in found}) < len(found):
        raise ValueError(f"each name stands for one folder, found {', '.join(typed)}")
    return sorted(found, key=lambda model: model.seed)


def dialogues(most: int | None) -> dict[str, list[Dialogue]]:
    """Those of the study's evaluation by part, at most so many of each."""
    parts = OmegaConf.load(EVALUATION).dialogues
    for part in parts.values() if most is not None else ():
        part.size = min(part.size, most)
    return {name: [*instantiate(part, _convert_="all")] for name, part in parts.items()}


@dataclass(frozen=True)
class Prompt:
    """A dialogue with its true answers, as ways take it.

    Attributes:
        id: The dialogue's.
        tokens: All of them.
        images: Decoded.
        answers: For each answer the range [start, stop) of its tokens, its end included.
    """

    id: str
    tokens: Tokens
    images: list[Image.Image]
    answers: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, dialogue: Dialogue, processor: VisualChatProcessor) -> Prompt:
        """That of a dialogue."""
        encoding = processor.encode(dialogue)
        tokens = Tokens(encoding.input_ids, encoding.mm_token_type_ids, encoding.unit_ids)
        return cls(dialogue.id, tokens, [decode_image(image) for image in dialogue.images], encoding.answer_spans)


class Answers:
    """What a way answers, in the order of the questions.

    Attributes:
        way: The one.
        right: For each question 1 if greedy decoding gives the true answer to its last token, else 0.
        words: The likeliest tokens, each given the true ones before.
        seconds: Of the processor, in which they were computed.
    """

    def __init__(self, way: Way) -> None:
        self.way = way
        self.right: list[str] = []
        self.words: list[str] = []
        self.seconds = 0.0

    def take(self, prompt: Prompt, processor: VisualChatProcessor) -> None:
        """Answer the questions of a dialogue.

        Raises:
            ValueError: Logits are not finite.
        """
        begun = time.process_time()
        asked = torch.cat([torch.arange(start - 1, stop - 1) for start, stop in prompt.answers])
        logits = self.way.logits(prompt.tokens, prompt.images, asked)
        if not logits.isfinite().all():
            raise ValueError(f"{prompt.id}: logits are not finite: the model's weights are damaged")
        best = iter(logits.argmax(-1).tolist())
        for start, stop in prompt.answers:
            said = [next(best) for _ in range(start, stop)]
            self.right.append("1" if said == prompt.tokens.ids[start:stop] else "0")
            self.words.append(processor.tokenizer.decode(said, skip_special_tokens=True))
        self.seconds += time.process_time() - begun


def asked_of(parts: Mapping[str, Sequence[Dialogue]]) -> list[Question]:
    """All questions, in the order in which they are asked."""
    fields = ("dialogue", "round", "kind", "images", "question")
    return [
        Question(part, *(facts[name] for name in fields), facts["references"][0])
        for part, of in parts.items()
        for dialogue in of
        for facts in questions(dialogue)
    ]


def score(models: Sequence[Trained], most: int | None, file: Path) -> tuple[Kept, dict[str, dict[str, Any]]]:
    """The answers that are kept, once those of all ways of all models are among them; and how each name attends.

    Raises:
        ValueError: What is kept answers other questions.
    """
    kept, attention = keeping.read(file), {}
    evaluate = ("evaluation=tiny_hops", *([] if most is None else [f"at most {most} dialogues of a part"]))
    parts: dict[str, list[Dialogue]] = {}
    for trained in models:
        model = load_light(trained.folder)
        processor = VisualChatProcessor.from_pretrained(trained.folder)
        attention[trained.name] = {name: getattr(model.config, name) for name in FIELDS}
        done = {run.arm[0] for run in kept.runs if run.does(run.arm, trained.seed, (trained.weights,), evaluate)}
        ways = {n: way for n, way in ways_of(trained.name, model, processor, SCORED).items() if n not in done}
        if not ways:
            continue
        parts = parts or dialogues(most)
        found = {name: Answers(way) for name, way in ways.items()}
        for dialogue in (dialogue for of in parts.values() for dialogue in of):
            prompt = Prompt.of(dialogue, processor)
            for of_way in found.values():
                of_way.take(prompt, processor)
        asked = asked_of(parts)
        if kept.runs and kept.questions != asked:
            raise ValueError(f"{file} answers other questions: remove it, or name another folder with --results")
        for name, of in found.items():
            answered = ("".join(of.right), tuple(of.words))
            code = code_state(PACKAGE)[0]
            run = Run((name,), trained.seed, (trained.weights,), evaluate, code, round(of.seconds, 1), *answered)
            kept.add(run, asked)
            share = run.right.count("1") / len(asked)
            print(f"{name}, seed {trained.seed}: {share:.1%} right, {of.seconds:.0f} s", flush=True)
        keeping.write(kept, file)
    return kept, attention


def measure(attention: Mapping[str, Mapping[str, Any]], setting: argparse.Namespace) -> dict[str, Any]:
    """Times to the first token of prompts with known images in a new order, of each way of each name."""
    side, case = setting.image_side, CASES[CASE]
    models = {name: model_of(setting.layers, side, **fields) for name, fields in attention.items()}
    ways = {
        way: (models[name], found)
        for name in attention
        for way, found in ways_of(name, models[name], processor_of(side), TIMED).items()
    }
    images = pictures(setting.images, side)
    for model, way in ways.values():
        tokens = random_prompt(model, case, -1, len(images))[1]
        for turn in range(len(images)):  # known as every number
            way.logits(tokens, images[turn:] + images[:turn], torch.tensor([len(tokens.ids) - 1]))
    known = {name: way.unknown for name, (_, way) in ways.items()}
    plain = answerer(model_of(setting.layers, side, attention_kind="causal"), side, stored=False)
    times: dict[str, list[float]] = {name: [] for name in (*ways, HIT)}
    for repeat in range(setting.repeats + 1):
        shuffled = random.Random(repeat).sample(images, len(images))
        taken = {}
        for name, (model, way) in ways.items():
            tokens = random_prompt(model, case, repeat, len(images))[1]
            last = torch.tensor([len(tokens.ids) - 1])
            taken[name] = milliseconds(partial(way.logits, tokens, shuffled, last))
        prefix, tokens = random_prompt(plain.model, case, repeat, len(images))
        cache = plain.new_cache()
        plain.prefill(prefix, shuffled, cache)
        taken[HIT] = milliseconds(partial(plain.prefill, tokens, [], cache))
        for name, took in taken.items() if repeat else ():  # the first warms up
            times[name].append(took)
    assert known == {name: way.unknown for name, (_, way) in ways.items()}
    hit = statistics.median(times.pop(HIT))
    spread = {name: [min(of), statistics.median(of), max(of)] for name, of in times.items()}
    return {
        "machine": {"processor": cpu_name(), "threads": 1, "torch": version("torch")},
        **conditions(attention, setting),
        "ms": {name: dict(zip(("least", "median", "most"), of, strict=True)) for name, of in spread.items()},
        "prefix hit, ms": hit,
        "exact": {name: way.exact for name, (_, way) in ways.items()},
    }


HIT = "prefix hit"


def conditions(attention: Mapping[str, Mapping[str, Any]], setting: argparse.Namespace) -> dict[str, Any]:
    """What times depend on, beside the machine."""
    sizes = {"layers": setting.layers, "image tokens": (setting.image_side // 8) ** 2, "images": setting.images}
    return {**sizes, "repeats": setting.repeats, "prompt": vars(CASES[CASE]), "models": attention}


def timed(attention: Mapping[str, Mapping[str, Any]], setting: argparse.Namespace, file: Path) -> dict[str, Any]:
    """The times that are kept, measured again where they are of other models or sizes."""
    kept: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if not attention:
        return kept
    wanted = conditions({**kept.get("models", {}), **attention}, setting)
    if any(kept.get(name) != value for name, value in wanted.items()):
        kept = measure(wanted["models"], setting)
        file.write_text(json.dumps(kept, indent=1) + "\n")
    return kept


@torch.no_grad()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", metavar="NAME=FOLDER", help="an arm of a study, and the folder of its runs"
    )
    parser.add_argument("--dialogues", type=int, help="the most of each part that are scored (default: all)")
    for name, default in (("repeats", 9), ("layers", 4), ("images", 8), ("image-side", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--results", type=Path, default=RESULTS)
    setting = parser.parse_args()
    silence_libraries()
    torch.set_num_threads(1)
    answers, times = (setting.results / "reuse" / name for name in ("answers.jsonl.xz", "times.json"))
    answers.parent.mkdir(parents=True, exist_ok=True)
    try:
        kept, attention = score(trained_models(setting.models), setting.dialogues, answers)
        if not kept.runs:
            raise ValueError(f"{setting.results} keeps no answers: name trained models as NAME=FOLDER")
        print(f"the page is {write_page(kept, timed(attention, setting, times), setting.results)}")
    except ValueError as error:
        parser.exit(2, f"reuse.py: {error}\n")


if __name__ == "__main__":
    main()

"""How much of their attention trained models give to images, and to the image that is asked about, layer by layer.

    python benchmarks/looking.py                        the runs that visualchat-study study=image_numbers left here
    python benchmarks/looking.py --folder FOLDER --dialogues 10

The motive of MMCA is that causal attention gives images less and less of its weight (arXiv 2309.14327, section 4.1).
Read are the weights by which each token of a true answer was chosen, in new dialogues of the tiny world, for questions
about one of two images or more. Writes docs/results/looking.md, .json and .png; a discussion on the page stays.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from looking_report import draw, page
from omegaconf import OmegaConf

from visualchat.chat.looking import layers_and_heads, look
from visualchat.cli.config import CONF
from visualchat.dialogue import Dialogue
from visualchat.model import VisualChatProcessor
from visualchat.model.saved import load_model
from visualchat.studies.plan import plan_of
from visualchat.studies.running import MODEL, jobs_of
from visualchat.tiny import TinyDialogues

ROOT = Path(__file__).resolve().parents[1]
STUDY = "image_numbers"
SEED = 1000
"""Of the dialogues: others than any training or evaluation has."""


@dataclass(frozen=True)
class Case:
    """A question that is answered, at the end of a dialogue.

    Attributes:
        dialogue: Up to the question, with its true answer.
        image: The one that is asked about, from 0.
        images: How many there are so far.
    """

    dialogue: Dialogue
    image: int
    images: int


def cases(dialogues: int) -> Iterator[Case]:
    """The questions about one of several images in so many dialogues."""
    data = TinyDialogues("validation", dialogues, SEED)
    for index in range(dialogues):
        sketch, dialogue = data.sketch(index), data[index]
        images = 0
        for number, turn in enumerate(sketch.rounds, start=1):
            images += len(turn.scenes)
            about = {image for image, _ in turn.question.about}
            if images > 1 and len(about) == 1:
                yield Case(replace(dialogue, turns=dialogue.turns[:number]), about.pop() - 1, images)


def looked(folder: Path, dialogues: int) -> dict[str, list[float] | int]:
    """What a saved model does, by layer.

    Returns:
        `images`, the share of the weights on images, where one softmax runs over them and the text; `asked`, the share
        of these on the image that is asked about; how many `softmaxes` there are.
    """
    model, processor = load_model(folder), VisualChatProcessor.from_pretrained(folder)
    layers, _ = layers_and_heads(model)
    images: list[list[float]] = [[] for _ in range(layers)]
    asked: list[list[float]] = [[] for _ in range(layers)]
    for case in cases(dialogues):
        for layer in range(layers):
            found = look(model, processor, case.dialogue, layer=layer)
            of_each = found.images.sum(2).mean(0)  # (I,)
            images[layer].append(float(of_each.sum()))
            asked[layer].append(float(of_each[case.image] / of_each.sum()))
    shares: dict[str, list[float] | int] = {"softmaxes": found.softmaxes}
    shares["asked"] = [statistics.fmean(of) for of in asked]
    if found.softmaxes == 1:
        shares["images"] = [statistics.fmean(of) for of in images]
    return shares


def runs(folder: Path) -> Iterator[tuple[str, int, Path]]:
    """The trained models of the study: arm, seed and folder."""
    with initialize_config_dir(CONF, version_base="1.3"):
        values = OmegaConf.to_container(compose("studies", [f"study={STUDY}"]).plan)
    plan = plan_of({**values, "name": STUDY})
    for job in jobs_of(plan, (folder / STUDY).resolve()):
        if (job.folder / MODEL).is_dir():
            kind, numbers = job.arm
            yield kind + (" with numbers" if numbers == "learned" else ""), job.seed, job.folder / MODEL


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/studies"), help="where the study's runs are")
    parser.add_argument("--dialogues", type=int, default=60, help="how many are read")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results", help="where the page goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: dict[str, dict[int, dict[str, list[float] | int]]] = defaultdict(dict)
    for arm, seed, folder in runs(options.folder):
        found[arm][seed] = looked(folder, options.dialogues)
        print(f"{arm}, seed {seed}: {found[arm][seed]}", flush=True)
    if not found:
        parser.error(
            f"--folder {options.folder}: no run of the study {STUDY}; make them: visualchat-study study={STUDY}"
        )
    chosen = [*cases(options.dialogues)]
    result = {
        "dialogues": options.dialogues,
        "questions": len(chosen),
        "chance": statistics.fmean(1 / case.images for case in chosen),
        "torch": version("torch"),
        "arms": found,
    }
    result = json.loads(json.dumps(result))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "looking.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.output / "looking.png")
    document = options.output / "looking.md"
    before = document.read_text(encoding="utf-8") if document.is_file() else ""
    document.write_text(page(result, before), encoding="utf-8")


if __name__ == "__main__":
    main()

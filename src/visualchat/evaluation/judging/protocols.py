"""What a judge is asked, and how its verdict is read: MMDU's and SparklesEval's criteria, and two answers compared.

MMDU (arXiv 2406.11833) scores each answer beside its reference answer in six respects and as a whole; SparklesEval
(arXiv 2308.16463) scores the answers of a whole dialogue, its images told by captions, in three respects and as a
whole. Both use whole numbers from 1 to 10. The criteria and scales are theirs, the words of the prompts are ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from visualchat.evaluation.predictions import Prediction

Shown = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One thing that a judge is asked.

    Attributes:
        part: Of the evaluation.
        dialogue: The dialogue's id.
        round: From 1; 0 for all rounds together.
        order: Which answer of two stands first, `12` or `21`; empty where there is but one.
        prompt: The judge's.
        images: Names of the files of all images sent so far.
        names: What it scores; empty where it compares.
    """

    part: str
    dialogue: str
    round: int
    order: str
    prompt: str
    images: Shown
    names: tuple[str, ...] = ()


MMDU = {
    "Creativity": "new and fitting ideas, where the question leaves room for them",
    "Richness": "depth and breadth of what is told",
    "Visual Perception": "whether what it says of the images is there to be seen, and how much of it it sees",
    "Logical Coherence": "whether each step follows from those before and from the question",
    "Answer Accuracy": "whether it answers what was asked, rightly and completely",
    "Image Relationship Understanding": "whether images are told apart and related to one another rightly",
}
OVERALL = "Overall Score"

SPARKLES = {
    "C1": "Image Understanding and Reasoning: objects, their context and their relations, within an image and between "
    "images, are found and described rightly",
    "C2": "Cross-Image and Cross-Turn Coherence: what is understood stays the same over images and rounds",
    "C3": "Relevance and Completeness of Responses: the answer keeps to the question and the images, and is thorough",
}

_SCALE = (
    "1 or 2: wrong, beside the point or harmful. 3 or 4: harmless, but of little worth. 5 or 6: the main thing is "
    "right, much is missing. 7 or 8: good in every respect. 9 or 10: "
)


def mmdu(predictions: Sequence[Prediction]) -> list[Case]:
    """A case for each question: its answer beside the reference answer."""
    criteria = "\n".join(f"- {name}: {what}" for name, what in MMDU.items())
    head = (
        "You judge the answer that an assistant gave to a question about images. Be strict and impartial; a reference "
        f"answer is given.\n\nRespects:\n{criteria}\n\n"
        f"Scale, whole numbers: {_SCALE}better than the reference answer.\n\n"
    )
    names = (*MMDU, OVERALL)
    cases = []
    for p, images in _with_images(predictions):
        told = f"[Question]\n{p.question}\n\n[Reference answer]\n{p.references[0]}\n\n[Answer to judge]\n{p.answer}\n\n"
        cases.append(Case(p.part, p.dialogue, p.round, "", head + told + _request(names), images, names))
    return cases


def sparkles_eval(predictions: Sequence[Prediction]) -> list[Case]:
    """A case for each dialogue: all its answers, its images told by their captions."""
    criteria = "\n".join(f"({name}) {what}" for name, what in SPARKLES.items())
    dialogues: dict[tuple[str, str], list[tuple[Prediction, Shown]]] = {}
    for p, images in _with_images(predictions):
        dialogues.setdefault((p.part, p.dialogue), []).append((p, images))
    cases = []
    for (part, dialogue), of in dialogues.items():
        captions = [caption for p, _ in of for caption in p.captions]
        listed = "\n".join(f"Image {number}: {json.dumps(text)}" for number, text in enumerate(captions, start=1))
        said = "\n\n".join(f"[Q{n}]\n{p.question}\n\n[A{n}]\n{p.answer}" for n, (p, _) in enumerate(of, start=1))
        answers = [f"A{n}" for n in range(1, len(of) + 1)]
        names = tuple(f"{a}{rest}" for a in answers for rest in (*(f" {name}" for name in SPARKLES), ""))
        prompt = (
            f"You judge the answers {' and '.join(answers)} that an assistant gave in a dialogue about several images. "
            f"Be objective.\n\nImages, by captions:\n{listed}\n\nDialogue:\n{said}\n\nCriteria:\n{criteria}\n\n"
            f"Scale, whole numbers: {_SCALE}exceptionally helpful and detailed.\n"
            f"Score each answer by each criterion ({names[0]!r} and so on) and as a whole ({answers[0]!r}).\n\n"
        )
        cases.append(Case(part, dialogue, 0, "", prompt + _request(names), of[-1][1], names))
    return cases


def pairs(first: Sequence[Prediction], second: Sequence[Prediction]) -> list[Case]:
    """Two cases for each question that both answer: the first one's answer before the second one's, and behind it."""
    others = {p.key: p for p in second}
    cases = []
    for p, images in _with_images(first):
        if (other := others.get(p.key)) is None:
            continue
        for order, (one, two) in (("12", (p, other)), ("21", (other, p))):
            prompt = (
                "Two assistants answered the same question about images. Say which answer is better: right about the "
                "images first, then complete, then clear. Neither their order nor their length counts.\n\n"
                f"[Question]\n{p.question}\n\n[Reference answer]\n{p.references[0]}\n\n"
                f"[Answer 1]\n{one.answer}\n\n[Answer 2]\n{two.answer}\n\n"
                "Give your reasons in a few sentences. End with [[1]] if answer 1 is better, [[2]] if answer 2 is, or "
                "[[tie]]."
            )
            cases.append(Case(p.part, p.dialogue, p.round, order, prompt, images))
    return cases


def _with_images(predictions: Sequence[Prediction]) -> list[tuple[Prediction, Shown]]:
    """Each with the files of all images sent until then."""
    so_far: dict[tuple[str, str], Shown] = {}
    found = []
    for p in predictions:
        so_far[p.part, p.dialogue] = (*so_far.get((p.part, p.dialogue), ()), *p.shown)
        found.append((p, so_far[p.part, p.dialogue]))
    return found


def _request(names: Sequence[str]) -> str:
    form = ", ".join(f'"{name}": 0' for name in names)
    return (
        "First explain your scores in a few sentences. Then end with one JSON object that has a score from 1 to 10 in "
        f"place of each 0:\n{{{form}}}"
    )


SCORED: Mapping[str, Callable[[Sequence[Prediction]], list[Case]]] = {"mmdu": mmdu, "sparkles_eval": sparkles_eval}
"""Protocols that score answers, by the names of their benchmarks."""

PAIRS = "pairs"


def read_scores(text: str, names: Sequence[str]) -> dict[str, int] | None:
    """The scores that a verdict ends with; None unless its last object has all of them, each from 1 to 10."""
    found = re.findall(r"\{[^{}]*\}", text)
    try:
        scores = json.loads(found[-1]) if found else None
    except ValueError:
        return None
    if not isinstance(scores, dict) or set(scores) != {*names}:
        return None
    sound = all(type(score) is int and 1 <= score <= 10 for score in scores.values())
    return {name: scores[name] for name in names} if sound else None


def read_choice(text: str) -> str | None:
    """Which answer a verdict says is better, `1`, `2` or `tie`; None unless it says so once and for all."""
    said = set(re.findall(r"\[\[(1|2|tie)\]\]", text))
    return said.pop() if len(said) == 1 else None

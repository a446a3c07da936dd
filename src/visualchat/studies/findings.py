"""What the kept answers of a study say: exact match of every arm with its interval, and what became of each claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from visualchat.evaluation.statistics import crossed_means, holm
from visualchat.studies.kept import Kept, Question, Run
from visualchat.studies.plan import Claim, Levels, Plan

ALL = "all"
LEVEL = 0.95
"""Of intervals; a claim is decided at the rest."""

Verdict = Literal["confirmed", "refuted", "open"]


@dataclass(frozen=True)
class Cell:
    """Exact match of an arm on a group of questions, in points of a hundred.

    Attributes:
        value: The mean over seeds and questions.
        low: Where its interval begins.
        high: Where it ends.
        questions: How many they are.
    """

    value: float
    low: float
    high: float
    questions: int


@dataclass(frozen=True)
class Row:
    """An arm's figures.

    Attributes:
        arm: Its level of each factor.
        seeds: How many runs it has.
        seconds: The median of their trainings.
        cells: By group: `all`, the plan's groups, the kinds, `N images`.
    """

    arm: Levels
    seeds: int
    seconds: float
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Finding:
    """What became of a claim for one pair of arms.

    Attributes:
        claim: The claim.
        arm: The arm that it is about.
        other: The arm beside it.
        seeds: Those that both have.
        questions: How many each answered.
        difference: In points, and its interval from `low` to `high`.
        low: See `difference`.
        high: See `difference`.
        p: How likely a difference so far from what the verdict denies would be by chance, corrected for the number of
            claims (Holm).
        verdict: `confirmed`, `refuted` (the contrary is as sure), or `open`.
    """

    claim: Claim
    arm: Levels
    other: Levels
    seeds: tuple[int, ...]
    questions: int
    difference: float
    low: float
    high: float
    p: float
    verdict: Verdict


def groups(
    questions: Sequence[Question], apart: Sequence[str], named: Mapping[str, Sequence[str]]
) -> dict[str, NDArray[np.int64]]:
    """The places of the questions of each group: all that count, the named groups, each kind, each number of images."""
    found: dict[str, list[int]] = {ALL: []}
    for name, kinds in named.items():
        if together := [place for place, question in enumerate(questions) if question.kind in kinds]:
            found[name] = together
    for place, question in enumerate(questions):
        found.setdefault(question.kind, []).append(place)
    images: dict[int, list[int]] = {}
    for place, question in enumerate(questions):
        if question.kind not in apart:
            found[ALL].append(place)
            images.setdefault(question.images, []).append(place)
    of_images = {f"{count} image{'s' * (count > 1)}": images[count] for count in sorted(images)}
    return {name: np.array(places) for name, places in {**found, **of_images}.items()}


def rows(plan: Plan, kept: Kept) -> list[Row]:
    """The figures of every arm that has a run."""
    places = groups(kept.questions, plan.apart, plan.groups)
    dialogues = _dialogues(kept.questions)
    found = []
    for arm in plan.arms:
        runs = [run for run in kept.runs if run.arm == arm]
        if runs:
            right = np.stack([_right(run) for run in runs])
            cells = {name: _cell(right[:, of], [dialogues[i] for i in of]) for name, of in places.items()}
            found.append(Row(arm, len(runs), median(run.seconds for run in runs), cells))
    return found


def _cell(right: NDArray[np.float64], dialogues: Sequence[tuple[str, str]]) -> Cell:
    low, high = _interval(crossed_means(right, dialogues))
    return Cell(100 * float(right.mean()), 100 * low, 100 * high, right.shape[1])


def findings(plan: Plan, kept: Kept) -> list[Finding]:
    """What became of every claim, for each pair of arms that both have runs of a seed."""
    places = groups(kept.questions, plan.apart, plan.groups)
    dialogues = _dialogues(kept.questions)
    found: list[Finding] = []
    for claim in plan.claims:
        if unknown := [kind for kind in claim.kinds if kind not in places]:
            raise ValueError(f"a claim is about questions of kind {unknown[0]}; there are {', '.join(places)}")
        of = np.sort(np.concatenate([places[kind] for kind in claim.kinds or (ALL,)]))
        for arm, other in plan.sides(claim):
            sides = [{run.seed: run for run in kept.runs if run.arm == side} for side in (arm, other)]
            seeds = tuple(sorted({*sides[0]} & {*sides[1]}))
            if seeds:
                differences = np.stack([_right(sides[0][seed])[of] - _right(sides[1][seed])[of] for seed in seeds])
                draws = crossed_means(differences, [dialogues[i] for i in of])
                low, high = (100 * bound for bound in _interval(draws))
                p, verdict = decide(claim, 100 * draws)
                found.append(
                    Finding(claim, arm, other, seeds, len(of), 100 * float(differences.mean()), low, high, p, verdict)
                )
    corrected = holm([finding.p for finding in found])
    return [_corrected(finding, p) for finding, p in zip(found, corrected, strict=True)]


def decide(claim: Claim, draws: NDArray[np.float64]) -> tuple[float, Verdict]:
    """How sure the draws of a difference, in points, make a claim or its contrary, and which of the two.

    Twice the share of draws that lie on the other side, so that a claim is decided where the interval of `LEVEL` lies
    on one side alone.
    """
    if claim.expect == "level":
        beside = max(_share(draws >= claim.margin), _share(draws <= -claim.margin))
        within = _share(np.abs(draws) < claim.margin)
    else:
        sign = 1 if claim.expect == "better" else -1
        beside, within = _share(sign * draws <= 0), _share(sign * draws >= 0)
    p = min(1.0, 2 * min(beside, within))
    return p, "confirmed" if beside < within else "refuted"


def _corrected(finding: Finding, p: float) -> Finding:
    verdict: Verdict = finding.verdict if p < 1 - LEVEL else "open"
    return replace(finding, p=p, verdict=verdict)


def _share(found: NDArray[np.bool_]) -> float:
    """The share of draws, never 0: so many draws cannot tell less than one in them."""
    return float((found.sum() + 1) / (len(found) + 1))


def _interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _right(run: Run) -> NDArray[np.float64]:
    return np.frombuffer(run.right.encode(), np.uint8).astype(np.float64) - ord("0")


def _dialogues(questions: Sequence[Question]) -> list[tuple[str, str]]:
    return [(question.part, question.dialogue) for question in questions]

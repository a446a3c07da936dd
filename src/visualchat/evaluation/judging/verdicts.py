"""Verdicts of a judge: the line of `verdicts.jsonl` for each, and what they come to.

A verdict that cannot be read counts for no one, and is counted. Of two answers one is better only if the judge says so
in both orders; how often it names the answer that it was shown first tells its bias of position.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from visualchat.evaluation.judging.endpoint import Reply
from visualchat.evaluation.judging.protocols import Case, read_choice, read_scores
from visualchat.evaluation.scores import Figure
from visualchat.evaluation.statistics import mean_interval


@dataclass(frozen=True)
class Verdict:
    """What a judge was asked and said.

    Attributes:
        part: As `Case` has it, like the next four.
        dialogue: The dialogue's id.
        round: From 1; 0 for all rounds together.
        order: Which answer of two stood first; empty where there was but one.
        prompt: The judge's.
        raw: Its words.
        ended: Why they ended.
        attempts: How often it was asked.
        scores: What could be read: scores by name; empty where it compared, None where nothing could be read.
        choice: `1`, `2` or `tie`, in the order that the judge saw; empty where it scored, None where it is unreadable.
    """

    part: str
    dialogue: str
    round: int
    order: str
    prompt: str
    raw: str
    ended: str
    attempts: int
    scores: Mapping[str, int] | None
    choice: str | None

    @property
    def readable(self) -> bool:
        """Whether a judgement could be read."""
        return self.scores is not None and self.choice is not None


def verdict(case: Case, reply: Reply) -> Verdict:
    """What a judge's words mean."""
    scores = read_scores(reply.text, case.names) if case.names else {}
    choice = "" if case.names else read_choice(reply.text)
    asked = (case.part, case.dialogue, case.round, case.order, case.prompt)
    return Verdict(*asked, reply.text, reply.ended, reply.attempts, scores, choice)


def to_line(verdict: Verdict) -> str:
    """As a line of JSON."""
    return json.dumps(asdict(verdict), ensure_ascii=False) + "\n"


def read_verdicts(path: Path) -> list[Verdict]:
    """The verdicts of a file."""
    with path.open(encoding="utf-8") as file:
        return [Verdict(**json.loads(line)) for line in file]


def mean_scores(verdicts: Sequence[Verdict]) -> list[Figure]:
    """The mean of each score, 1 to 10, with its interval over dialogues; of a dialogue's answers also `all`."""
    found: dict[str, list[tuple[float, Verdict]]] = {}
    for one in verdicts:
        scores = one.scores or {}
        wholes = [score for name, score in scores.items() if name[1:].isdecimal()]  # A1, A2: of whole answers
        for name, score in scores.items():
            found.setdefault(name, []).append((score, one))
        if wholes:
            found.setdefault("all", []).append((sum(wholes) / len(wholes), one))
    return [_mean(name, [s for s, _ in of], [v for _, v in of], len(verdicts)) for name, of in found.items()]


def comparison(verdicts: Sequence[Verdict]) -> list[Figure]:
    """What the comparison of two comes to.

    Returns:
        Shares of the questions whose verdicts can be read in both orders: `first` and `second` better in both, `tie`
        in both, `undecided` where the orders disagree; `score` counts the last two half for the first; and
        `shown_first`, the share of the verdicts that name an answer which name the one that stands first.
    """
    questions: dict[tuple[str, str, int], dict[str, Verdict]] = {}
    for one in verdicts:
        questions.setdefault((one.part, one.dialogue, one.round), {})[one.order] = one
    whole = [of for of in questions.values() if len(of) == 2 and all(v.readable for v in of.values())]
    outcomes = [(_outcome(of), of["12"]) for of in whole]
    points = {"first": 1.0, "second": 0.0, "tie": 0.5, "undecided": 0.5}
    asked, where = len(questions), [v for _, v in outcomes]
    found = [_mean("score", [points[outcome] for outcome, _ in outcomes], where, asked)] if whole else []
    for name in points if whole else ():
        found.append(_mean(name, [float(outcome == name) for outcome, _ in outcomes], where, asked))
    if named := [v for v in verdicts if v.choice in ("1", "2")]:
        found.append(_mean("shown_first", [float(v.choice == "1") for v in named], named, len(named)))
    return found


def _outcome(by_order: Mapping[str, Verdict]) -> str:
    """Which of two answers is better by verdicts in both orders."""
    first = {("12", "1"): "first", ("12", "2"): "second", ("21", "1"): "second", ("21", "2"): "first"}
    said = {first.get((order, str(v.choice)), "tie") for order, v in by_order.items()}
    return said.pop() if len(said) == 1 else "undecided"


def _mean(name: str, values: Sequence[float], of: Sequence[Verdict], asked: int) -> Figure:
    low, high = mean_interval(values, [(v.part, v.dialogue) for v in of]) or (None, None)
    return Figure(name, sum(values) / len(values), low, high, len(values), asked - len(values))

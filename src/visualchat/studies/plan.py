"""A study's plan, written before its runs: what is compared, how often, and which claims its answers shall decide."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Expected = Literal["better", "worse", "level"]
"""What a claim says of one level of a factor beside another."""

Levels = tuple[str, ...]
"""An arm: its level of each factor, in the factors' order."""


@dataclass(frozen=True)
class Claim:
    """A statement that the answers confirm, refute, or leave open.

    Attributes:
        factor: What differs between the two sides.
        level: The factor's level that the statement is about.
        against: The level it is compared with.
        expect: `better` or `worse` on the same questions, or `level`: no further apart than `margin`.
        margin: Of `level`, in points of a hundred.
        where: The levels of other factors that it is about; it is made for every arm with these.
        kinds: The kinds of question, or groups of them, that it is about; empty for all that count.
    """

    factor: str
    level: str
    against: str
    expect: Expected
    margin: float = 1.0
    where: tuple[tuple[str, str], ...] = ()
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a study does.

    Attributes:
        name: Of its configuration, its page and its files.
        title: Of its page.
        question: What it asks, in sentences.
        beyond: What this size cannot decide, in sentences.
        train: Settings of `visualchat-train` of every run.
        evaluate: Settings of `visualchat-evaluate` of every run.
        factors: What is varied: each factor's levels, and the settings of `visualchat-train` that a level stands for.
        without: Levels that do not go together, each a part of an arm.
        seeds: Of the runs of every arm.
        apart: Kinds of question that are shown and do not count.
        groups: Kinds of question that are shown together, by the group's name.
        claims: What shall be decided.
    """

    name: str
    title: str
    question: str
    beyond: str
    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    factors: Mapping[str, Mapping[str, tuple[str, ...]]]
    without: tuple[Mapping[str, str], ...]
    seeds: tuple[int, ...]
    apart: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    claims: tuple[Claim, ...]

    @property
    def arms(self) -> list[Levels]:
        """Every combination of levels that is not left out."""
        found = []
        for levels in itertools.product(*self.factors.values()):
            of = dict(zip(self.factors, levels, strict=True))
            if not any(set(part.items()) <= set(of.items()) for part in self.without):
                found.append(levels)
        return found

    def settings(self, arm: Levels) -> tuple[str, ...]:
        """What is typed to train an arm, but for its seed and its folder."""
        chosen = (self.factors[factor][level] for factor, level in zip(self.factors, arm, strict=True))
        return (*self.train, *itertools.chain.from_iterable(chosen))

    def sides(self, claim: Claim) -> list[tuple[Levels, Levels]]:
        """The pairs of arms that a claim is about: they differ in its factor alone."""
        place = list(self.factors).index(claim.factor)
        pairs = []
        for arm in self.arms:
            of = dict(zip(self.factors, arm, strict=True))
            other = (*arm[:place], claim.against, *arm[place + 1 :])
            if of[claim.factor] == claim.level and set(claim.where) <= set(of.items()) and other in self.arms:
                pairs.append((arm, other))
        return pairs


def plan_of(values: Mapping[str, Any]) -> Plan:
    """A plan from its configuration.

    Args:
        values: The fields of `Plan`, as plain containers.

    Raises:
        ValueError: A field is missing, unknown or makes no sense; it is named.
    """
    required, optional = (
        {"name", "title", "question", "factors", "seeds"},
        {"beyond", "without", "apart", "groups", "claims"},
    )
    optional |= {"train", "evaluate"}
    _require_keys("the plan", values, required, optional)
    factors = {
        str(factor): {str(level): _texts(f"factors.{factor}.{level}", typed) for level, typed in levels.items()}
        for factor, levels in values["factors"].items()
    }
    if not factors or not all(factors.values()):
        raise ValueError("factors: expected at least one factor, each with at least one level")
    seeds = tuple(values["seeds"])
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(f"seeds: expected different whole numbers, found {list(seeds)}")
    without = tuple({str(f): str(level) for f, level in part.items()} for part in values.get("without") or ())
    plan = Plan(
        name=str(values["name"]),
        title=str(values["title"]),
        question=str(values["question"]).strip(),
        beyond=str(values.get("beyond") or "").strip(),
        train=_texts("train", values.get("train")),
        evaluate=_texts("evaluate", values.get("evaluate")),
        factors=factors,
        without=without,
        seeds=seeds,
        apart=_texts("apart", values.get("apart")),
        groups={str(name): _texts(f"groups.{name}", of) for name, of in (values.get("groups") or {}).items()},
        claims=tuple(_claim(number, claim) for number, claim in enumerate(values.get("claims") or (), start=1)),
    )
    for part in without:
        _require_levels("without", factors, part)
    for number, claim in enumerate(plan.claims, start=1):
        place = f"claims, number {number}"
        _require_levels(place, factors, {claim.factor: claim.level})
        _require_levels(place, factors, {claim.factor: claim.against, **dict(claim.where)})
        if not plan.sides(claim):
            raise ValueError(f"{place}: no two arms differ in {claim.factor} as {claim.level} and {claim.against} do")
    return plan


def _claim(number: int, values: Mapping[str, Any]) -> Claim:
    place = f"claims, number {number}"
    _require_keys(place, values, {"factor", "level", "against", "expect"}, {"margin", "where", "kinds"})
    if values["expect"] not in get_args(Expected):
        raise ValueError(f"{place}: expect must be one of {', '.join(get_args(Expected))}, found {values['expect']}")
    margin = values.get("margin", 1.0)
    if not isinstance(margin, int | float) or not margin > 0:
        raise ValueError(f"{place}: margin must be above 0, in points, found {margin}")
    return Claim(
        factor=str(values["factor"]),
        level=str(values["level"]),
        against=str(values["against"]),
        expect=values["expect"],
        margin=float(margin),
        where=tuple((str(factor), str(level)) for factor, level in (values.get("where") or {}).items()),
        kinds=_texts(f"{place}: kinds", values.get("kinds")),
    )


def _require_keys(place: str, values: Mapping[str, Any], required: set[str], optional: set[str]) -> None:
    if missing := sorted(required - {*values}):
        raise ValueError(f"{place} lacks {', '.join(missing)}")
    if unknown := sorted({*values} - required - optional):
        raise ValueError(
            f"{place} has unknown {', '.join(unknown)}; known are {', '.join(sorted(required | optional))}"
        )


def _require_levels(place: str, factors: Mapping[str, Mapping[str, Any]], levels: Mapping[str, str]) -> None:
    for factor, level in levels.items():
        if factor not in factors:
            raise ValueError(f"{place}: unknown factor {factor}, expected one of {', '.join(factors)}")
        if level not in factors[factor]:
            raise ValueError(f"{place}: {factor} has no level {level}, expected one of {', '.join(factors[factor])}")


def _texts(place: str, values: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values or ()):
        raise ValueError(f"{place}: expected a list of texts, found {values}")
    return tuple(values or ())

"""Runs of one and the same configuration: what one study keeps the others take from it, and no study has one twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from hydra import compose
from omegaconf import OmegaConf

from visualchat.studies.kept import Kept, read
from visualchat.studies.plan import Plan
from visualchat.studies.running import Job

END = ".jsonl.xz"
"""How files of kept answers end."""


def take(jobs: Iterable[Job], kept: Kept, results: Path, name: str) -> list[str]:
    """Take over what other studies ran of the same training, seed, evaluation and questions as a job.

    Hydra must be at work, as it is in a command: settings are compared as it composes them.

    Args:
        jobs: Of the study, missing in it.
        kept: Its answers; the runs go in here.
        results: The folder of all studies' answers.
        name: The study's own.

    Returns:
        The studies they were taken from.
    """
    missing, found = list(jobs), []
    for file in sorted(results.glob(f"*{END}")):
        other = file.name.removesuffix(END)
        if other == name or not missing:
            continue
        theirs = read(file)
        if kept.runs and kept.questions != theirs.questions:
            continue
        for job in missing:
            for run in theirs.runs:
                same = (run.seed, run.evaluate) == (job.seed, job.evaluate)
                if same and not run.study and _trains_the_same(run.train, job.train):
                    kept.add(replace(run, arm=job.arm, train=job.train, study=other), theirs.questions)
                    found.append(other)
                    break
        there = {(run.arm, run.seed) for run in kept.runs}
        missing = [job for job in missing if (job.arm, job.seed) not in there]
    return found


def require_different(plan: Plan) -> None:
    """Refuse a plan two of whose arms are one: a difference of them would be measured as nothing.

    Hydra must be at work.

    Raises:
        ValueError: Two arms compose to one configuration; both are named.
    """
    arms = plan.arms
    for place, arm in enumerate(arms):
        for earlier in arms[:place]:
            if _trains_the_same(plan.settings(arm), plan.settings(earlier)):
                raise ValueError(
                    f"study={plan.name}: {', '.join(earlier)} and {', '.join(arm)} train the same: one configuration "
                    "comes of the settings of both, so change a level in factors or leave one out"
                )


def _trains_the_same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lines of settings make one configuration, however they are typed."""
    return _composed(tuple(one)) == _composed(tuple(other))


@cache
def _composed(settings: tuple[str, ...]) -> object:
    return OmegaConf.to_container(compose("train", [*settings]), resolve=False)

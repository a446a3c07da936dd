"""The runs of a study: each trains and answers in processes of its own, several at a time, and can be stopped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from visualchat.studies.plan import Levels, Plan

MODEL = "light"
FIGURES = "metrics.json"
LOG = "run.log"
MISTAKE = 2
"""The exit code of commands whose settings are refused."""
_LOOK_EVERY = 0.2
"""Seconds between two looks at a process."""


@dataclass(frozen=True)
class Job:
    """A run to be done.

    Attributes:
        arm: Its level of each factor.
        seed: Of its training.
        folder: Of its run.
        train: What is typed behind `visualchat-train`, but for seed and folder.
        evaluate: What is typed behind `visualchat-evaluate`, but for folders.
    """

    arm: Levels
    seed: int
    folder: Path
    train: tuple[str, ...]
    evaluate: tuple[str, ...]

    @property
    def name(self) -> str:
        """As people read it."""
        return f"{', '.join(self.arm)}, seed {self.seed}"

    @property
    def evaluation(self) -> Path:
        """The folder of its evaluation."""
        return self.folder / _name(["evaluation"], self.evaluate)


def jobs_of(plan: Plan, folder: Path) -> list[Job]:
    """All runs of a plan, seed by seed, so that every arm has its first answers early."""
    return [
        Job(arm, seed, folder / _name(arm, plan.settings(arm)) / str(seed), plan.settings(arm), plan.evaluate)
        for seed in plan.seeds
        for arm in plan.arms
    ]


def _name(levels: Sequence[str], settings: Sequence[str]) -> str:
    """A folder's name: its levels without what is not for names of files, and what tells other settings apart."""
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    return "-".join([*(re.sub(r"[^\w.]+", "_", level) for level in levels), digest[:6]])


def lines(job: Job) -> list[list[str]]:
    """The command lines of a job that are still to be run: what a killed one finished stays."""
    trained = (job.folder / FIGURES).is_file() and (job.folder / MODEL).is_dir()
    own = [f"seed={job.seed}", "save=light", "evaluation=none", "threads=1", "resume=auto"]
    train = [*job.train, *own, f"hydra.run.dir={_quoted(job.folder)}"]
    evaluate = [f"folder={_quoted(job.folder / MODEL)}", *job.evaluate]
    evaluate.append(f"hydra.run.dir={_quoted(job.evaluation)}")
    python = [sys.executable, "-m"]
    found = [] if trained else [[*python, "visualchat.cli.train", *train]]
    return [*found, [*python, "visualchat.cli.evaluate", *evaluate]]


def _quoted(path: Path) -> str:
    """A path as a value of Hydra's command line."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def run_all(
    jobs: Sequence[Job],
    at_once: int,
    begun: Callable[[Job], None],
    ended: Callable[[Job, str | None], None],
) -> None:
    """Run jobs, so many at a time; a failed one does not stop the others.

    Args:
        jobs: In the order in which they begin.
        at_once: How many run at a time, each on one thread.
        begun: Called as a job begins.
        ended: Called, by this thread, as a job ends: with its error, or None. Ctrl-C, and an error that it raises, ends
            the processes that run; the same jobs again continue where they were.

    Raises:
        ValueError: The settings of a job were refused; those of others likely are, too.
    """
    stop = Event()

    def work(job: Job) -> str | None:
        if stop.is_set():
            return "stopped"
        begun(job)
        return _run(job, stop)

    with ThreadPoolExecutor(at_once) as pool:
        running: dict[Future[str | None], Job] = {pool.submit(work, job): job for job in jobs}
        try:
            while running:
                for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    ended(running.pop(future), future.result())
        finally:
            stop.set()


def _run(job: Job, stop: Event) -> str | None:
    """Run what is left of a job.

    Returns:
        Its error, if it has one.

    Raises:
        ValueError: Its settings were refused.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for line in lines(job):
        with (job.folder / LOG).open("ab") as log:
            process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
            while True:
                try:
                    code = process.wait(_LOOK_EVERY)
                    break
                except subprocess.TimeoutExpired:
                    if stop.is_set():
                        process.terminate()  # which saves what it has
                        process.wait()
                        return "stopped"
        if code == MISTAKE:
            stop.set()  # before another job takes this one's place
            raise ValueError(f"{job.name} was refused: {_last_words(job.folder / LOG)}")
        if code:
            return f"exit code {code}, {_last_words(job.folder / LOG)}"
    return None


def _last_words(log: Path) -> str:
    """What a command said of its error: from its name on, or its last line."""
    said = log.read_text(errors="replace").strip()
    _, found, error = f"\n{said}".rpartition("\nvisualchat-")
    words = f"visualchat-{error}" if found else said.rpartition("\n")[2] or "no output"
    return f"{' '.join(words.split())} ({os.path.relpath(log)})"

"""`visualchat-study`: the runs of a plan that are still missing, then its page."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from visualchat.cli import shared_runs
from visualchat.cli.conclusions import PREDICTIONS
from visualchat.cli.config import PLAIN
from visualchat.cli.main import study as main
from visualchat.cli.provenance import CODE
from visualchat.cli.run_folder import locked
from visualchat.evaluation.predictions import read_predictions
from visualchat.studies import kept as keeping
from visualchat.studies.figure import draw
from visualchat.studies.findings import findings, rows
from visualchat.studies.kept import Kept, Run
from visualchat.studies.page import page
from visualchat.studies.plan import Plan, plan_of
from visualchat.studies.running import FIGURES, Job, jobs_of, run_all

console = Console()


def load(values: DictConfig) -> Plan:
    """The plan of the configuration.

    Raises:
        ValueError: It makes no sense; the message names its file.
    """
    plain = OmegaConf.to_container(values, resolve=True)
    name = HydraConfig.get().runtime.choices["study"]
    try:
        return plan_of({**plain, "name": name})  # type: ignore[dict-item]
    except ValueError as error:
        raise ValueError(f"study={name}: {error}") from error


def missing(plan: Plan, kept: Kept, folder: Path) -> list[Job]:
    """The runs that are not kept.

    Raises:
        ValueError: One is kept of other settings, which a run of these would take the place of.
    """
    there = {(run.arm, run.seed): run for run in kept.runs}
    found = []
    for job in jobs_of(plan, folder):
        run = there.get((job.arm, job.seed))
        if run is None:
            found.append(job)
        elif not run.does(job.arm, job.seed, job.train, job.evaluate):
            raise ValueError(
                f"study={plan.name}: {job.name} is kept of other settings: results=FOLDER puts the answers of these "
                "elsewhere, again=true runs all again in the place of what is kept"
            )
    return found


def finished(job: Job) -> tuple[Run, list[keeping.Question]]:
    """A job's run, read from its folder, and its questions."""
    questions, right, answers = keeping.answered(read_predictions(job.evaluation / PREDICTIONS))
    seconds = json.loads((job.folder / FIGURES).read_text())["train/seconds"]
    code = json.loads((job.folder / CODE).read_text())
    return Run(job.arm, job.seed, job.train, job.evaluate, code, seconds, right, answers), questions


def train_missing(plan: Plan, kept: Kept, jobs: Sequence[Job], at_once: int, file: Path) -> list[str]:
    """Run jobs; every finished one is kept at once.

    Returns:
        What failed, a line each.
    """
    failed: list[str] = []
    done, started = 0, time.monotonic()

    def begun(job: Job) -> None:
        console.print(f"begins: {job.name}", **PLAIN)

    def ended(job: Job, error: str | None) -> None:
        nonlocal done
        done += 1
        if error is None:
            kept.add(*finished(job))
            keeping.write(kept, file)
        else:
            failed.append(f"{job.name}: {error}")
        left = (time.monotonic() - started) / done * (len(jobs) - done)
        says = "failed" if error else f"{100 * share(kept, job):.1f}% right"
        console.print(f"{done} of {len(jobs)}: {job.name}: {says}; about {left / 60:.0f} min left", **PLAIN)

    run_all(jobs, at_once, begun, ended)
    return failed


def share(kept: Kept, job: Job) -> float:
    """How many of a finished job's answers are right."""
    right = next(run.right for run in kept.runs if (run.arm, run.seed) == (job.arm, job.seed))
    return right.count("1") / len(right)


def run(config: DictConfig) -> None:
    """The command."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that no run of it is left running
    plan = load(config.plan)
    if type(config.jobs) is not int or config.jobs < 1:
        raise ValueError(f"jobs={config.jobs}: expected how many runs there are at a time, at least 1")
    results = Path(config.results)
    results.mkdir(parents=True, exist_ok=True)
    file, document, figure = (results / f"{plan.name}{end}" for end in (shared_runs.END, ".md", ".png"))
    folder = Path(config.folder) / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "running this study"):
        kept = Kept() if config.again else keeping.read(file)
        todo = missing(plan, kept, folder.resolve())
        if todo:
            shared_runs.require_different(plan)
        for job in todo if config.again else ():
            shutil.rmtree(job.folder, ignore_errors=True)
        if todo and not config.again and (taken := shared_runs.take(todo, kept, results, plan.name)):
            keeping.write(kept, file)
            todo = missing(plan, kept, folder.resolve())
            console.print(f"{len(taken)} runs are those of {', '.join(sorted({*taken}))}", **PLAIN)
        failed: list[str] = []
        if todo and not config.page_only:
            total = len(plan.arms) * len(plan.seeds)
            console.print(f"{plan.title}: {len(todo)} of {total} runs are missing, {config.jobs} at a time", **PLAIN)
            failed = train_missing(plan, kept, todo, config.jobs, file)
        conclude(plan, kept, document, figure)
    console.print(f"the page is {os.path.relpath(document)}", **PLAIN)
    if failed:
        raise ValueError(f"{len(failed)} of {len(todo)} runs failed; the same line tries them again\n" + failed[0])


def conclude(plan: Plan, kept: Kept, document: Path, figure: Path) -> None:
    """Write the page and its figure from the answers of the plan's runs."""
    planned = Kept(kept.questions, [run for run in kept.runs if run.arm in plan.arms and run.seed in plan.seeds])
    table = rows(plan, planned)
    if table:
        draw(plan, table, figure)
    before = document.read_text(encoding="utf-8") if document.is_file() else ""
    text = page(plan, planned, table, findings(plan, planned), figure.name, before)
    document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

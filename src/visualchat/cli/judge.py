"""`visualchat-judge`: a judge behind OpenAI's chat API scores an evaluation's answers, or compares those of two."""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from visualchat.cli.conclusions import saved_evaluation
from visualchat.cli.config import PLAIN, check_number
from visualchat.cli.main import judge as main
from visualchat.cli.run_folder import continued_by, locked
from visualchat.data.progress import bar
from visualchat.evaluation.judging.endpoint import Endpoint
from visualchat.evaluation.judging.protocols import PAIRS, SCORED, Case, pairs
from visualchat.evaluation.judging.verdicts import comparison, mean_scores, read_verdicts, to_line, verdict
from visualchat.evaluation.predictions import Mode, Prediction, of
from visualchat.evaluation.scores import Figure, table
from visualchat.generation.journal import Journal

console = Console()

VERDICTS, FIGURES = "verdicts.jsonl", "judgement.json"
KEY = "OPENAI_API_KEY"
"""The environment variable with the judge's key; no setting, so that no file keeps it."""


def judge(config: DictConfig, run: Path) -> list[Figure]:
    """Have all answers judged; verdicts and figures go into the folder `run`.

    Raises:
        ValueError: Something cannot be judged as it was asked for, or the judge refuses.
        RuntimeError: The judge gives no answer, or none that can be read.
    """
    for name in ("max_tokens", "workers", "attempts", "timeout"):
        check_number(name, config[name], 1)
    endpoint = Endpoint(
        config.address,
        str(config.judge),
        os.environ.get(KEY),
        max_tokens=config.max_tokens,
        timeout=config.timeout,
        attempts=config.attempts,
    )
    folders = [Path(config.predictions)] if isinstance(config.predictions, str) else [*map(Path, config.predictions)]
    protocol, cases = what_to_ask(folders, config.protocol, config.mode, images=config.images)
    ask(endpoint, cases, folders[0] if config.images else None, config, run)
    verdicts = read_verdicts(run / VERDICTS)
    found = comparison(verdicts) if protocol == PAIRS else mean_scores(verdicts)
    unread = sum(not one.readable for one in verdicts)
    if not found:
        raise RuntimeError(
            f"not one of {len(verdicts)} verdicts could be read: {os.path.relpath(run / VERDICTS)} has them; the first "
            f"begins: {verdicts[0].raw[:80]!r}"
        )
    figures = {"protocol": protocol, "judge": config.judge, "verdicts": len(verdicts), "unreadable": unread}
    left = {**figures, "figures": table({protocol: found})}
    (run / FIGURES).write_text(json.dumps(left, indent=2) + "\n", encoding="utf-8")
    names = " and ".join(str(folder) for folder in folders)
    console.print(f"\n{names}, {config.mode}, judged by {config.judge}: {len(verdicts)} verdicts", **PLAIN)
    console.print(shown_as(protocol, found))
    if protocol == PAIRS:
        console.print(f"first: {folders[0]}; second: {folders[1]}; each better in both orders", **PLAIN)
    if unread:
        console.print(f"verdicts that could not be read, and count for no one: {unread}", **PLAIN)
    for name, what in ((FIGURES, "the figures"), (VERDICTS, "every prompt and what the judge said")):
        console.print(f"  {os.path.relpath(run / name)}  {what}", **PLAIN)
    return found


def what_to_ask(
    folders: Sequence[Path], named: str | None, mode: str, *, images: bool = False
) -> tuple[str, list[Case]]:
    """The protocol, and all that the judge is asked.

    Args:
        folders: Of evaluations.
        named: The protocol; None for that of the benchmark, or of two folders.
        mode: What stood before the questions.
        images: Whether the judge is shown the images.

    Raises:
        ValueError: There is no such protocol or mode, folders and protocol do not fit, or there is nothing to judge.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode={mode}: expected one of {', '.join(get_args(Mode))}")
    answers = [_answers(folder, mode) for folder in folders]
    parts = {p.part for p in answers[0]}
    protocol = named or (PAIRS if len(folders) > 1 else parts.pop() if len(parts) == 1 else "")
    if protocol not in (*SCORED, PAIRS):
        remedy = "" if named else ", which its benchmark does not tell"
        raise ValueError(f"protocol={named or 'null'}: expected one of {', '.join([*SCORED, PAIRS])}{remedy}")
    if len(folders) != (2 if protocol == PAIRS else 1):
        raise ValueError(
            f"protocol={protocol} judges {'two evaluations' if protocol == PAIRS else 'one evaluation'}: "
            f"predictions= names {len(folders)}"
        )
    if protocol == "sparkles_eval" and not images and not all(_told(answers[0])):
        raise ValueError(
            "protocol=sparkles_eval tells the judge each image's caption, which these data lack: images=true shows them"
        )
    cases = pairs(*answers) if protocol == PAIRS else SCORED[protocol](answers[0])
    if not cases:
        raise ValueError("these two evaluations have no question in common: only equal questions can be compared")
    return protocol, cases


def _answers(folder: Path, mode: str) -> list[Prediction]:
    found = of(saved_evaluation(folder)[1], "tuned", mode)  # type: ignore[arg-type]
    if not found:
        raise ValueError(f"predictions={folder}: there are no {mode} answers; mode= chooses others")
    return found


def _told(predictions: Sequence[Prediction]) -> list[bool]:
    """For each round with images whether each of them has a caption."""
    return [len(p.captions) == len(p.shown) and all(p.captions) for p in predictions if p.shown]


def ask(endpoint: Endpoint, cases: Sequence[Case], images: Path | None, config: DictConfig, run: Path) -> None:
    """Write the verdict on every case that has none so far, a few at a time.

    Args:
        endpoint: The judge.
        cases: What it is asked.
        images: The folder that images are named from; None if the judge is shown none.
        config: How.
        run: The folder for the verdicts.
    """
    asked = hashlib.sha256("\0".join(case.prompt for case in cases).encode("utf-8", "surrogatepass")).hexdigest()
    decisive = ("address", "judge", "images", "max_tokens", "workers")
    journal = Journal(run, {"questions": asked, **{name: config[name] for name in decisive}})
    steps = [cases[start : start + config.workers] for start in range(0, len(cases), config.workers)]
    if journal.done:
        console.print(f"continuing: {journal.done} of {len(steps)} steps are there", **PLAIN)

    def judged(case: Case) -> str:
        shown = [data_url(images / name) for name in case.images] if images else []
        return to_line(verdict(case, endpoint.ask(case.prompt, shown)))

    with ThreadPoolExecutor(config.workers) as threads, bar("judging", len(steps)) as show:
        for number, some in enumerate(steps[journal.done :], start=journal.done + 1):
            journal.append({VERDICTS: "".join(threads.map(judged, some))})
            show(number)


def data_url(path: Path) -> str:
    """A file as OpenAI's API takes it."""
    return f"data:{mimetypes.guess_type(path)[0]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def shown_as(protocol: str, found: Sequence[Figure]) -> Table:
    """The figures as a table: shares in percent of two compared, else scores of 1 to 10."""
    scale, unit = (100, "shares in %") if protocol == PAIRS else (1, "scores from 1 to 10")
    shown = Table()
    for heading in (unit, "mean", "95%", "of"):
        shown.add_column(heading, justify="left" if heading == unit else "right", overflow="fold")
    for one in found:
        between = "-" if one.low is None or one.high is None else f"{scale * one.low:.2f} to {scale * one.high:.2f}"
        shown.add_row(one.name.replace("_", " "), f"{scale * one.value:.2f}", between, str(one.questions))
    return shown


def run(config: DictConfig) -> None:
    """The command."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with continued_by(folder), locked(folder, "writing verdicts"):
        judge(config, folder)


if __name__ == "__main__":
    main()

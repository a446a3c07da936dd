"""`visualchat-evaluate`: how well a saved model answers dialogues, beside the same model without images."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from visualchat.cli.answer_scores import IMAGES, image_files
from visualchat.cli.answers import compare_answers
from visualchat.cli.comparing import compare
from visualchat.cli.conclusions import PREDICTIONS, RECORD, conclude, require_place, score_again
from visualchat.cli.config import PLAIN, attention_setting, setting, silence_libraries
from visualchat.cli.main import evaluate as main
from visualchat.cli.prediction_table import check_logger, log_evaluation
from visualchat.cli.provenance import closing_wandb
from visualchat.cli.run_folder import continued_by, locked
from visualchat.cli.scoring import check_evaluation, dialogues_to_score
from visualchat.data.progress import bar
from visualchat.dialogue import Dialogue
from visualchat.evaluation.controls import CONTROLS
from visualchat.evaluation.predictions import Mode, Prediction, questions, read_predictions, to_line
from visualchat.evaluation.protocol import Asker, steps
from visualchat.evaluation.report import samples_page
from visualchat.generation.answering import batched
from visualchat.generation.journal import Journal
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.fingerprint import base_fingerprint
from visualchat.model.saved import load_model, saved_model

console = Console()

STEP = 4
"""Batches that are answered and written at a time."""


def evaluate(config: DictConfig, run: Path) -> dict[str, float]:
    """Score a saved model; figures, predictions and pages go into the folder `run`."""
    silence_libraries()
    require_place(run)
    folder = saved_model(config.folder)
    choices = HydraConfig.get().runtime.choices
    require_the_runs_data(folder, HydraConfig.get().overrides.task)
    model = load_model(folder, config.vision, config.language).eval()
    processor = VisualChatProcessor.from_pretrained(folder)
    parts = dialogues_to_score(config.evaluation, config.data, processor)
    if not parts:
        raise ValueError("evaluation=none has nothing to score: leave it out, or name another one")
    record = {
        "title": f"{folder}, {attention_setting(model.config.attention)}, data={choices['data']}",
        "apart": [*config.evaluation.apart],
        "metrics": [*config.evaluation.metrics],
        "samples": config.evaluation.samples,
    }
    ask(asker(model, processor, config.evaluation), parts, config.evaluation, run)
    predictions = read_predictions(run / PREDICTIONS)
    (run / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _write_samples(parts, predictions, config.evaluation.samples, run)
    return conclude(predictions, record, run)


def asker(model: VisualChatForConditionalGeneration, processor: VisualChatProcessor, settings: DictConfig) -> Asker:
    """What asks the model, by the settings of an evaluation.

    Raises:
        ValueError: There is no such mode.
    """
    known = get_args(Mode)
    if not settings.modes or set(settings.modes) - {*known}:
        raise ValueError(f"evaluation.modes={[*settings.modes]}: expected one or both of {', '.join(known)}")
    answer = batched(model, processor, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size)
    return Asker(model, processor, answer, [*settings.modes], settings.batch_size, settings.option_likelihood)


def ask(asker: Asker, parts: Mapping[str, Sequence[Dialogue]], settings: DictConfig, run: Path) -> None:
    """Write the prediction of every question that has none so far, column by column: the model, then its controls."""
    facts = {name: [questions(dialogue) for dialogue in part] for name, part in parts.items()}
    asked = hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
    columns = conditions(parts, settings)
    decisive = ("modes", "controls", "max_new_tokens", "batch_size", "option_likelihood")
    chosen: Any = OmegaConf.to_container(OmegaConf.masked_copy(settings, [*decisive]))
    named = {f"evaluation.{name}": value for name, value in chosen.items()}
    journal = Journal(run, {"model": base_fingerprint(asker.model, ()), "questions": asked, **named})
    sizes = {column: {name: seen for name, (_, seen) in of.items()} for column, of in columns.items()}
    todo = [step for name, of in sizes.items() for step in steps(of, [name], STEP * settings.batch_size)]
    if journal.done:
        console.print(f"continuing: {journal.done} of {len(todo)} steps are there", **PLAIN)
    with bar("asking", len(todo)) as show:
        for number, (column, part, indexes) in enumerate(todo[journal.done :], start=journal.done + 1):
            true, changed = columns[column][part]
            dialogues = [true[index] for index in indexes]
            seen = dialogues if changed is true else [changed[index] for index in indexes]
            first = column == "tuned"
            modes = asker.modes if first else asker.modes[:1]
            shown = [image_files(dialogue, run / IMAGES) for dialogue in dialogues] if first else ()
            found = replace(asker, modes=modes).predictions(dialogues, seen, column, part, shown)
            journal.append({PREDICTIONS: "".join(map(to_line, found))})
            show(number)


def conditions(
    parts: Mapping[str, Sequence[Dialogue]], settings: DictConfig
) -> dict[str, dict[str, tuple[Sequence[Dialogue], Sequence[Dialogue]]]]:
    """For the model and each control, by part: dialogues with their true answers, and as the model sees them.

    Images of a corpus are read when their dialogue is asked.

    Raises:
        ValueError: There is no such control, or none can be made of a part.
    """
    if unknown := [name for name in settings.controls if name not in CONTROLS]:
        raise ValueError(f"unknown control {unknown[0]} in evaluation.controls, expected {', '.join(CONTROLS)}")
    found = {"tuned": {name: (part, part) for name, part in parts.items()}}
    for control in settings.controls:
        made = {name: CONTROLS[control](part, 0) for name, part in parts.items()}
        found[control] = {
            name: (parts[name] if control == "blind" else part, part) for name, part in made.items() if part
        }
        if not found[control]:
            raise ValueError(f"evaluation.controls: {control} cannot be made of any of these dialogues; leave it out")
    return found


def _write_samples(
    parts: Mapping[str, Sequence[Dialogue]], predictions: Sequence[Prediction], samples: int, run: Path
) -> None:
    """The page of sample dialogues, with answers that are given the true ones before if there are any."""
    answers: dict[tuple[str, str], list[str]] = {}
    mode = predictions[0].mode
    for p in predictions:
        if p.column == "tuned" and p.mode == mode:
            answers.setdefault((p.part, p.dialogue), []).append(p.answer)
    chosen = [(name, dialogue) for name, part in parts.items() for dialogue in part[:samples]]
    given = [answers[name, dialogue.id] for name, dialogue in chosen]
    page = samples_page("Sample dialogues", [dialogue for _, dialogue in chosen], given)
    (run / "samples.html").write_text(page, encoding="utf-8")


def require_the_runs_data(folder: Path, overrides: Sequence[str]) -> None:
    """Refuse to score the model of a run on the tiny world for no other reason than that no data were named.

    Args:
        folder: Of the model; its run's folder is above it.
        overrides: What was typed.

    Raises:
        ValueError: The run trained on other data; the message says how it named them.
    """
    records = folder.resolve().parent / ".hydra"
    typed = {override.partition("=")[0] for override in overrides}
    if typed & {"data", "evaluation"} or not (records / "hydra.yaml").is_file():
        return
    record = OmegaConf.load(records / "hydra.yaml").hydra
    trained_on = {group: record.runtime.choices.get(group) for group in ("data", "data/source", "data/blend")}
    if not trained_on["data"] or trained_on["data"].startswith("tiny"):
        return
    again = [f"{group}={choice}" for group, choice in trained_on.items() if choice]
    again += [o for o in record.overrides.task if o.startswith(("source.", "data.", "blend.", "seed="))]
    raise ValueError(
        f"{folder} was trained on data={trained_on['data']}: name the data to score it on, such as what it held out:\n"
        f"visualchat-evaluate {setting('folder', folder)} {shlex.join(again)}"
    )


def check_what_is_scored(config: DictConfig) -> None:
    """Refuse settings that would have no effect, because they belong to something else that can be scored.

    Raises:
        ValueError: There are such settings.
    """
    named = [name for name in ("folder", "predictions", "answers") if config[name] is not None]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(f'{name}=' for name in named)}: only one of them can be scored at a time")
    defaults = {"input": None, "root": None, "image_folder": "", "images_first": False, "on_error": "error"}
    if config.answers is None and (idle := [name for name, value in defaults.items() if config[name] != value]):
        of_data = {"root": "source.root", "image_folder": "source.image_folder", "on_error": "data.bad_rows"}
        instead = f"; for rows of data: {of_data[idle[0]]}={config[idle[0]]}" if idle[0] in of_data else ""
        raise ValueError(f"{idle[0]}={config[idle[0]]} belongs to answers=[...], which is not given{instead}")


def run(config: DictConfig) -> None:
    """The command."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    check_what_is_scored(config)
    check_evaluation(config.evaluation)
    check_logger(config)
    with continued_by(folder), locked(folder, "writing predictions"), closing_wandb():
        if config.answers is not None:
            compare_answers(config, folder)
        elif config.predictions is None:
            metrics = evaluate(config, folder)
            log_evaluation(config, metrics, read_predictions(folder / PREDICTIONS))
        elif isinstance(config.predictions, str):
            metrics = score_again(Path(config.predictions), config.evaluation.metrics, folder)
            log_evaluation(config, metrics, read_predictions(Path(config.predictions) / PREDICTIONS))
        else:
            compare([Path(other) for other in config.predictions], config.evaluation.metrics, folder)


if __name__ == "__main__":
    main()

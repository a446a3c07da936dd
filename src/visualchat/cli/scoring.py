"""What training and evaluation say of a model at the end: figures beside baselines, a table, a page of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from rich.console import Console

from visualchat.cli.answer_scores import score_answers
from visualchat.cli.config import check_number
from visualchat.data.batching.held_out import held_out
from visualchat.data.blend.mixture import Blend
from visualchat.data.blend.own import OwnData
from visualchat.data.sources import Source
from visualchat.dialogue import Dialogue
from visualchat.evaluation.exact_match import prefixed
from visualchat.evaluation.pages import intervals, values
from visualchat.evaluation.report import legend, metrics_table, samples_page
from visualchat.evaluation.runner import answer_turns, evaluate_parts
from visualchat.evaluation.scores import Figure, check_metrics
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor

VALIDATION = "validation"
"""Value of `evaluation.dialogues`: the validation dialogues of the data."""

Scored = tuple[VisualChatForConditionalGeneration, Mapping[str, Sequence[Dialogue]]]
"""A model, and the dialogues that it is scored on by the name of their part."""


def blend_of(data: DictConfig) -> Blend | OwnData | None:
    """What splits the corpora of a data configuration; None where its dialogues are given side by side."""
    if "blend" in data:
        return instantiate(data.blend)
    if "source" in data:
        source = None if data.source is None else instantiate(data.source)
        return OwnData(source, data.validation, data.split_by, data.seed)
    return None


def validation_dialogues(data: DictConfig) -> Sequence[Dialogue]:
    """The validation dialogues of a data configuration; what trains is not touched."""
    blend = blend_of(data)
    dialogues: Sequence[Dialogue] = instantiate(data.validation) if blend is None else blend.validation
    return dialogues


def check_evaluation(settings: DictConfig) -> None:
    """Refuse an unknown metric, values that cannot be meant, and settings of dialogues that the evaluation lacks.

    Nothing has been read or trained by then.

    Raises:
        ValueError: There are such settings.
    """
    for name in ("apart", "modes", "controls", "metrics"):
        if not isinstance(settings[name], ListConfig):
            raise ValueError(
                f"evaluation.{name}={settings[name]}: expected a list, evaluation.{name}=[{settings[name]}]"
            )
    if not isinstance(settings.option_likelihood, bool):
        raise ValueError(f"evaluation.option_likelihood={settings.option_likelihood}: expected true or false")
    check_metrics(settings.metrics)
    for name, least in (("batch_size", 1), ("max_new_tokens", 1), ("samples", 0)):
        check_number(f"evaluation.{name}", settings[name], least)
    check_number("evaluation.most", settings.most, 1, none=True)
    if settings.dialogues == VALIDATION:
        return
    if nameless := [name for name, part in settings.dialogues.items() if "_target_" not in part]:
        raise ValueError(
            f"evaluation.dialogues.{nameless[0]} is set, but the chosen evaluation has no such dialogues; "
            "leave it out, or choose evaluation=tiny"
        )


def dialogues_to_score(
    settings: DictConfig,
    data: DictConfig,
    processor: VisualChatProcessor,
    validation: Sequence[Dialogue] | None = None,
) -> dict[str, Sequence[Dialogue]]:
    """The dialogues of an evaluation by the name of their part; none where the evaluation has none.

    Those of a corpus are read when they are asked for, so that its images need not fit into memory.

    Args:
        settings: Of the evaluation.
        data: Of the data.
        processor: Measures dialogues.
        validation: Those of the data, where they are at hand.

    Raises:
        ValueError: They cannot be read, or none is sound.
    """
    check_evaluation(settings)
    if settings.dialogues != VALIDATION:
        parts = instantiate(settings.dialogues, _convert_="all")
        return {name: part if isinstance(part, Source) else [*part] for name, part in parts.items()}
    dialogues = validation_dialogues(data) if validation is None else validation
    return {**held_out(dialogues, settings.most, processor, data.max_length, skip=data.bad_rows == "skip")}


def score(
    columns: Mapping[str, Scored], settings: DictConfig, processor: VisualChatProcessor, run: Path, title: str
) -> dict[str, float]:
    """Score each column, print the table, leave the page of samples of the first one's answers.

    Args:
        columns: Models by the name of their column, which `report.LEGEND` holds: the one in question first.
        settings: Of the evaluation.
        processor: Of all of them.
        run: The folder that gets `samples.html`.
        title: Of the table.

    Returns:
        The first column's figures, and those of the others under the columns' names.
    """
    figures = {
        name: evaluate_parts(
            model,
            processor,
            parts,
            apart=settings.apart,
            blind=name == "blind",
            batch_size=settings.batch_size,
            description=name,
        )
        for name, (model, parts) in columns.items()
    }
    first, (model, parts) = next(iter(columns.items()))
    dialogues = [dialogue for part in parts.values() for dialogue in part]
    answers_given = sum(len(dialogue.turns) for dialogue in dialogues)
    scored: dict[str, list[Figure]] = (
        score_answers(columns, settings, processor, run, title) if settings.metrics else {}
    )
    for name, column in values(scored).items():
        figures[name] |= column
    console = Console()
    console.print(f"\n{title}: {len(dialogues)} dialogues, {answers_given} answers", highlight=False, soft_wrap=True)
    console.print(metrics_table(figures, intervals(scored)))
    console.print(legend(figures), highlight=False, soft_wrap=True)
    chosen = [dialogue for part in parts.values() for dialogue in part[: settings.samples]]
    answers = answer_turns(
        model, processor, chosen, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size
    )
    (run / "samples.html").write_text(samples_page("Sample dialogues", chosen, answers), encoding="utf-8")
    metrics = figures.pop(first)
    for name, column in figures.items():
        metrics |= prefixed(name, column)
    return metrics

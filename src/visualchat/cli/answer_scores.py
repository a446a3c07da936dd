"""What the answers of a newly trained model are worth by the metrics of its evaluation, beside those without images.

The run's folder then holds what an evaluation leaves: `visualchat-evaluate predictions=[ONE,OTHER]` compares two runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from visualchat.cli.conclusions import PREDICTIONS, RECORD
from visualchat.data.batching.images import with_decoded_images
from visualchat.dialogue import Dialogue
from visualchat.evaluation.predictions import Prediction, to_line
from visualchat.evaluation.protocol import Asker
from visualchat.evaluation.scores import Figure, columns_of, figures, table
from visualchat.generation.answering import batched
from visualchat.images.thumbnails import thumbnail
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor

IMAGES = "images"
COLUMNS = ("tuned", "blind")
"""The columns whose answers are generated and scored."""


def score_answers(
    columns: Mapping[str, tuple[VisualChatForConditionalGeneration, Mapping[str, Sequence[Dialogue]]]],
    settings: DictConfig,
    processor: VisualChatProcessor,
    run: Path,
    title: str,
) -> dict[str, list[Figure]]:
    """The figures of `evaluation.metrics` by column, of each answer given the true ones before it.

    Args:
        columns: Models and their dialogues; those of `COLUMNS` count.
        settings: Of the evaluation.
        processor: Of all models.
        run: The folder that gets predictions, images and `scores.json`.
        title: What `evaluation.json` calls the run.
    """
    predictions: list[Prediction] = []
    for column in COLUMNS:
        model, parts = columns[column]
        answer = batched(model, processor, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size)
        asker = Asker(model, processor, answer, ["teacher_forced"], settings.batch_size, settings.option_likelihood)
        for part, dialogues in parts.items():
            blind = column == "blind"
            seen = [dialogue.without_images() for dialogue in dialogues] if blind else dialogues
            shown = [] if blind else [image_files(dialogue, run / IMAGES) for dialogue in dialogues]
            predictions += asker.predictions(dialogues, seen, column, part, shown)
    record = {"title": title, "apart": [*settings.apart], "metrics": [*settings.metrics], "samples": settings.samples}
    (run / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (run / PREDICTIONS).write_text("".join(map(to_line, predictions)), encoding="utf-8")
    scored = {name: figures(of, settings.metrics, settings.apart) for name, of in columns_of(predictions).items()}
    (run / "scores.json").write_text(json.dumps(table(scored), indent=2) + "\n", encoding="utf-8")
    return {name: [f for f in of if f.name.split("/")[-2] in settings.metrics] for name, of in scored.items()}


def image_files(dialogue: Dialogue, folder: Path) -> list[list[str]]:
    """The names of the files of each round's images, which are written for pages."""
    rounds = with_decoded_images(dialogue).turns
    return [[thumbnail(image, folder) for image in turn.images] for turn in rounds]  # type: ignore[arg-type]

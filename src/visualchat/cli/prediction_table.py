"""An evaluation in W&B: its figures, and a table with every question and its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from visualchat.evaluation.predictions import Prediction

TABLE = "predictions"
COLUMNS = (
    "part",
    "dialogue",
    "round",
    "kind",
    "images",
    "question",
    "true",
    "column",
    "mode",
    "answer",
    "exact",
    "loss",
)


def check_logger(config: DictConfig) -> None:
    """Whether the chosen logger can keep an evaluation, before anything is read.

    Raises:
        ValueError: It cannot, or two evaluations are compared.
    """
    if "logger" not in config:
        return
    if "wandb" not in config.logger:
        raise ValueError("an evaluation is kept in its own folder, and beside it in W&B alone: logger=wandb")
    if config.answers is not None or not isinstance(config.predictions, str | None):
        raise ValueError("logger=wandb keeps one evaluation: leave it out where several are compared")


def log_evaluation(config: DictConfig, metrics: Mapping[str, float], predictions: Sequence[Prediction]) -> None:
    """Give figures and predictions to W&B, if it was chosen."""
    if "logger" not in config:
        return
    logger: Any = instantiate(config.logger.wandb)
    logger.log_metrics(dict(metrics))
    logger.log_table(TABLE, columns=[*COLUMNS], data=[_row(prediction) for prediction in predictions])


def _row(p: Prediction) -> list[object]:
    facts = [p.part, p.dialogue, p.round, p.kind, p.images, p.question, p.references[0]]
    return [*facts, p.column, p.mode, p.answer, p.exact, p.loss]

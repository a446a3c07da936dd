"""What the model says while it learns: answers to a few fixed validation dialogues, after every validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from visualchat.dialogue import Dialogue
from visualchat.evaluation.report import samples_page
from visualchat.evaluation.runner import answer_turns
from visualchat.images.decode import decode_image

KEY = "validation/samples"
HEIGHT = 224
"""Pixels of a logged image, at most."""


class SampleRow(NamedTuple):
    """One round of a sample dialogue, a row of the table.

    Attributes:
        step: Optimizer steps before.
        dialogue: Its id.
        round: Its number, from 1.
        images: Those that arrive with the round, side by side; None where there is none.
        question: The user's.
        expected: The true answer.
        answer: The model's own, given the true history.
        exact: Whether both are equal.
    """

    step: int
    dialogue: str
    round: int
    images: Image.Image | None
    question: str
    expected: str
    answer: str
    exact: bool


class SampleDialogues(lightning.Callback):
    """Answers a handful of validation dialogues at every validation, and shows them.

    As a table in W&B, as text and images in TensorBoard, and as a page `samples/step_<step>.html` in the run's
    folder. Every rank generates the same answers, because sharded weights need all of them; the first one logs. Greedy,
    so training continues with the very random numbers that it would have had.

    Args:
        folder: The run's.
        count: How many dialogues.
        max_new_tokens: The longest answer.
    """

    def __init__(self, folder: str | Path, count: int = 4, max_new_tokens: int = 64) -> None:
        self.folder, self.count, self.max_new_tokens = Path(folder), count, max_new_tokens
        self._dialogues: list[Dialogue] | None = None

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Answer and show."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        first = self._dialogues is None
        dialogues = self._dialogues = data.samples(self.count) if self._dialogues is None else self._dialogues
        with trainer.precision_plugin.forward_context():
            answers = answer_turns(
                pl_module.model,  # type: ignore[arg-type]
                data.processor,
                dialogues,
                max_new_tokens=self.max_new_tokens,
                batch_size=data.batch_size,
            )
        if trainer.is_global_zero:
            self._show(trainer, dialogues, answers, first)

    def _show(
        self, trainer: lightning.Trainer, dialogues: Sequence[Dialogue], answers: Sequence[Sequence[str]], first: bool
    ) -> None:
        step = trainer.global_step
        rows = sample_rows(step, dialogues, answers)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                _to_wandb(logger, rows)
            elif isinstance(logger, TensorBoardLogger):
                _to_tensorboard(logger, rows, images=first)
        page = self.folder / "samples" / f"step_{step:06}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(samples_page(f"Validation dialogues after step {step}", dialogues, answers), encoding="utf-8")


def sample_rows(step: int, dialogues: Sequence[Dialogue], answers: Sequence[Sequence[str]]) -> list[SampleRow]:
    """One row a round, from true dialogues and the model's answers to each of their rounds."""
    return [
        SampleRow(
            step,
            dialogue.id,
            number,
            side_by_side([decode_image(image) for image in turn.images]),
            turn.question,
            turn.answer or "",
            answer,
            answer == turn.answer,
        )
        for dialogue, of_dialogue in zip(dialogues, answers, strict=True)
        for number, (turn, answer) in enumerate(zip(dialogue.turns, of_dialogue, strict=True), start=1)
    ]


def side_by_side(images: Sequence[Image.Image]) -> Image.Image | None:
    """The images in a row, all as high as the lowest and at most `HEIGHT` pixels; None for none."""
    if not images:
        return None
    height = min(HEIGHT, *(image.height for image in images))
    scaled = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in images]
    gap = 4
    row = Image.new("RGB", (sum(image.width + gap for image in scaled) - gap, height), "white")
    left = 0
    for image in scaled:
        row.paste(image, (left, 0))
        left += image.width + gap
    return row


def _to_wandb(logger: WandbLogger, rows: Sequence[SampleRow]) -> None:
    import wandb

    data = [[wandb.Image(cell) if isinstance(cell, Image.Image) else cell for cell in row] for row in rows]
    logger.log_table(KEY, columns=[*SampleRow._fields], data=data, step=max(0, rows[0].step - 1))


def _to_tensorboard(logger: TensorBoardLogger, rows: Sequence[SampleRow], *, images: bool) -> None:
    columns = ["dialogue", "round", "question", "expected", "answer", "exact"]
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_cell(getattr(row, column)) for column in columns) for row in rows]
    board: Any = logger.experiment
    board.add_text(KEY, "\n".join(f"| {line} |" for line in lines), rows[0].step)
    for row in rows if images else ():
        if row.images is not None:
            tag = f"{KEY}/{row.dialogue}/round {row.round}"
            board.add_image(tag, np.asarray(row.images), row.step, dataformats="HWC")


def _cell(value: Any) -> str:
    """A cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")

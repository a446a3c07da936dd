"""Logs of a run that is killed and resumed: the same files, every step once."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from visualchat.files import whole_file


class CSVRows:
    """The rows of a `metrics.csv`, kept across runs in its folder, one row a call of `log_metrics`.

    Args:
        folder: Where `metrics.csv` lies or will lie.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "metrics.csv"
        self.metrics: list[dict[str, Any]] = []  # not yet written
        self.columns: list[str] = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                self.columns = next(csv.reader(file), [])

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        """Add a row; it is written by `save`."""
        row = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in metrics.items()}
        self.metrics.append({**row, "step": step})

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write what the run was set to, as `hparams.yaml`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_hparams_to_yaml(self.path.with_name("hparams.yaml"), params)

    def save(self) -> None:
        """Write what is new; a new column means rewriting the whole file."""
        if not self.metrics:
            return
        new = set().union(*self.metrics) - set(self.columns)
        if new:
            old = self._written()
            self.columns = sorted({*self.columns, *new})
            self._replace(old + self.metrics)
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerows(self.metrics)
        self.metrics = []

    def forget_from(self, step: int) -> None:
        """Drop the rows of this step and later ones, and a row whose writing was cut short."""
        if self.path.is_file():
            self._replace([row for row in self._written() if int(row["step"]) < step])

    def _written(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        whole, newline, _ = self.path.read_text().rpartition("\n")
        return list(csv.DictReader(io.StringIO(whole + newline)))

    def _replace(self, rows: Sequence[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as draft, draft.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSVLogger, which deletes an existing `metrics.csv`, made to continue it."""

    _rows: CSVRows | None = None

    @property
    def experiment(self) -> Any:
        """The rows."""
        if self._rows is None:
            self._rows = CSVRows(self.log_dir)
        return self._rows

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()


@rank_zero_only
def forget_from(loggers: Sequence[Logger], step: int) -> None:
    """Drop the logs of this step and later ones, which a resumed run is about to make again.

    TensorBoard's files are only added to: they get the mark by which TensorBoard itself hides what came before it.
    """
    for logger in loggers:
        if isinstance(logger, ContinuedCSVLogger):
            logger.experiment.forget_from(step)
        elif isinstance(logger, TensorBoardLogger):
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog

            mark = Event(step=step, session_log=SessionLog(status=SessionLog.START))
            logger.experiment.file_writer.add_event(mark)


class QuietWandbLogger(WandbLogger):
    """Without the argument that Lightning always passes and that W&B warns of."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._wandb_init.pop("anonymous", None)

"""The progress bar: a line that moves on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from rich import get_console
from rich.progress import ProgressColumn

from visualchat.training.optim import training_steps

PLAIN_SECONDS = 10.0
"""Without a terminal: how far apart lines of progress are at least."""


class ProgressBar(RichProgressBar):
    """Lightning's progress bar on one line of 80 columns: epochs from 1, tokens a second, the time left for the run.

    Where the output is no terminal (a cluster's log), it prints a line now and then instead: at most one a percent, and
    the last.
    """

    _lines = False

    def __init__(self) -> None:
        theme = RichProgressBarTheme(metrics_text_delimiter=" ", metrics_format=".3f")
        super().__init__(theme=theme)

    def configure_columns(self, trainer: lightning.Trainer) -> list[ProgressColumn]:
        """Description, a short bar, and batches; Lightning puts the metrics after them."""
        description, bar, batches, _, _ = super().configure_columns(trainer)
        bar.bar_width = 6
        return [description, bar, batches]

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs
        return f"Epoch {current_epoch + 1}" + ("" if epochs in (None, -1) else f"/{epochs}")

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Choose between bar and lines."""
        super().setup(trainer, pl_module, stage)
        console = get_console()
        if not (console.is_terminal or console.is_jupyter):
            self.disable()
            self._lines = trainer.is_global_zero

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clocks."""
        super().on_train_start(trainer, pl_module)
        self._steps = training_steps(trainer, trainer.datamodule.train_batches())  # type: ignore[attr-defined]
        self._began = self._last = self._printed = time.perf_counter()
        self._percent = 100 * trainer.global_step // max(1, self._steps)
        self._batches = 0
        self._rate: float | None = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the rate since the batch before, smoothed over about ten batches."""
        now = time.perf_counter()
        rate = batch["stats"].tokens * trainer.world_size / max(now - self._last, 1e-9)
        self._rate = rate if self._rate is None or self._batches == 1 else 0.9 * self._rate + 0.1 * rate
        self._last = now
        self._batches += 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._lines:
            self._print_line(trainer, now)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validation does not count: the next batch's rate begins here."""
        super().on_validation_end(trainer, pl_module)
        self._last = time.perf_counter()

    def _print_line(self, trainer: lightning.Trainer, now: float) -> None:
        step, percent = trainer.global_step, 100 * trainer.global_step // max(1, self._steps)
        last = step == self._steps
        if percent == self._percent or (now - self._printed < PLAIN_SECONDS and not last):
            return
        self._percent, self._printed = percent, now
        metrics = trainer.callback_metrics
        names = {"train/loss": "loss", "validation/loss": "val loss", "validation/exact_match": "val exact"}
        words = [f"{short} {float(metrics[name]):.3f}" for name, short in names.items() if name in metrics]
        words += [f"tokens/s {self._rate:.0f}", f"run left {_clock(self.seconds_left(trainer))}"]
        print(f"{percent:3} %  step {step}/{self._steps}  {'  '.join(words)}", flush=True)

    def seconds_left(self, trainer: lightning.Trainer) -> float:
        """Until the last step, at the mean pace of this process so far, validations and saving included."""
        pace = (time.perf_counter() - self._began) / max(1, self._batches)
        return max(0, self._steps - trainer.global_step) * trainer.accumulate_grad_batches * pace

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands beside the bar: at most 51 characters."""
        metrics = trainer.callback_metrics
        beside_bar: dict[str, Any] = {}
        if "train/loss" in metrics:
            beside_bar["loss"] = float(metrics["train/loss"])
        if "validation/exact_match" in metrics:
            beside_bar["exact"] = f"{float(metrics['validation/exact_match']):.0%}"
        if getattr(self, "_batches", 0) and self._rate is not None:
            rate = f"{self._rate:.0f}" if self._rate < 10_000 else f"{self._rate / 1000:.0f}k"
            beside_bar |= {"tok/s": rate, "left": _clock(self.seconds_left(trainer))}
        return beside_bar


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"

"""What a run shows while it goes."""

from __future__ import annotations

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's progress bar with the rate of training tokens, and short names of the metrics."""

    _last: float | None = None
    _rate: float | None = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the rate since the batch before, smoothed over about ten batches."""
        now = time.perf_counter()
        if batch_idx and self._last is not None:
            rate = float(batch["attention_mask"].sum()) / (now - self._last)
            self._rate = rate if self._rate is None else 0.9 * self._rate + 0.1 * rate
        self._last = now
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands beside the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        names = {"train/loss": "loss", "validation/loss": "val loss", "validation/exact_match": "val exact"}
        short = {names.get(name, name): value for name, value in metrics.items()}
        return short if self._rate is None else {**short, "tokens/s": f"{self._rate:.0f}"}

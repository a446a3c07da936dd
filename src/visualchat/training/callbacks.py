"""What a run shows and records while it goes: the progress bar, and the metrics of every logger (docs/tracking.md)."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from rich import get_console
from rich.progress import ProgressColumn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from visualchat.data.facts import Facts, source_names
from visualchat.training.optim import optimizer_steps

GIGABYTE = 1e9
PLAIN_SECONDS = 10.0
"""Where there is no terminal, how far apart lines of progress are at least."""


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
        self._steps = optimizer_steps(trainer, trainer.datamodule.train_batches())  # type: ignore[attr-defined]
        self._began = self._last = self._said = time.perf_counter()
        self._percent = 100 * trainer.global_step // max(1, self._steps)
        self._batches = 0
        self._rate: float | None = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the rate since the batch before, smoothed over about ten batches."""
        now = time.perf_counter()
        rate = batch["facts"].tokens * trainer.world_size / max(now - self._last, 1e-9)
        self._rate = rate if self._rate is None or self._batches == 1 else 0.9 * self._rate + 0.1 * rate
        self._last = now
        self._batches += 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._lines:
            self._say(trainer, pl_module, now)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validation is no training: the next batch's rate begins here."""
        super().on_validation_end(trainer, pl_module)
        self._last = time.perf_counter()

    def _say(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, now: float) -> None:
        step, percent = trainer.global_step, 100 * trainer.global_step // max(1, self._steps)
        last = step == self._steps
        if percent == self._percent or (now - self._said < PLAIN_SECONDS and not last):
            return
        self._percent, self._said = percent, now
        found = trainer.callback_metrics
        names = {"train/loss": "loss", "validation/loss": "val loss", "validation/exact_match": "val exact"}
        words = [f"{short} {float(found[name]):.3f}" for name, short in names.items() if name in found]
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
        found = trainer.callback_metrics
        shown: dict[str, Any] = {}
        if "train/loss" in found:
            shown["loss"] = float(found["train/loss"])
        if "validation/exact_match" in found:
            shown["exact"] = f"{float(found['validation/exact_match']):.0%}"
        if getattr(self, "_batches", 0) and self._rate is not None:
            rate = f"{self._rate:.0f}" if self._rate < 10_000 else f"{self._rate / 1000:.0f}k"
            shown |= {"tok/s": rate, "left": _clock(self.seconds_left(trainer))}
        return shown


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class _Sums:
    """Sums over the batches since the last report, on one rank: losses stay on the device, counts are plain numbers."""

    def __init__(self, sources: int, device: torch.device) -> None:
        self.losses = torch.zeros(sources, device=device)
        self.tokens = [0] * sources
        self.exact = [0] * sources
        self.answers = [0] * sources

    def add(self, losses: Tensor, facts: Facts, exact: Sequence[bool] = ()) -> None:
        """Count a batch: the loss of each answer token, and in validation whether each answer is exact."""
        self.losses.index_add_(0, facts.token_source, losses.float())
        self.tokens = [a + b for a, b in zip(self.tokens, facts.answer_tokens, strict=True)]
        for source, right in zip(facts.answer_source, exact, strict=False):
            self.exact[source] += right
            self.answers[source] += 1

    def over_ranks(self, trainer: lightning.Trainer, *more: float) -> tuple[Tensor, Tensor]:
        """Those of all ranks: ([losses, tokens, exact, answers], each by source), and (ranks, n) of `more`.

        Every rank must call this at the same time.
        """
        counts = torch.tensor([*self.tokens, *self.exact, *self.answers, *more], device=self.losses.device)
        own = torch.cat([self.losses, counts.to(self.losses.dtype)])
        found = trainer.strategy.all_gather(own).reshape(-1, len(own)).cpu().double()
        split = 4 * len(self.tokens)
        return found[:, :split].sum(0).reshape(4, -1), found[:, split:]


def _by_source(name: str, names: Sequence[str], above: Tensor, below: Tensor) -> dict[str, float]:
    """`above / below` of each named source that has anything below; nothing where sources have no names."""
    found = zip(names, above, below, strict=True) if names else ()
    return {f"{name}/{source}": float(a / b) for source, a, b in found if b > 0}


class RunMetrics(lightning.Callback):
    """Logs what a run does to every logger, at every log step and every validation, summed over all ranks.

    Between log steps it counts plain numbers and makes one small addition on the device; it waits for the device and
    for other ranks at log steps only. `docs/tracking.md` lists the metrics.
    """

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin the first window."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._names, self._validation_names = source_names(data.train), source_names(data.validation)
        self._logged = trainer.global_step
        self._rates: dict[str, float] = {}
        self._norm: Tensor | None = None
        self._pause = 0.0
        self._open(pl_module.device)

    def _open(self, device: torch.device) -> None:
        self._sums = _Sums(max(1, len(self._names)), device)
        self._tokens = self._positions = self._images = 0
        self._since = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """At a log step, note learning rates and the gradient's norm before it is clipped."""
        if _is_log_step(trainer, trainer.global_step + 1):
            groups = trainer.optimizers[0].param_groups
            self._rates = {f"lr/{group.get('name', n)}": group["lr"] for n, group in enumerate(groups)}
            self._norm = None if _engine_norm(trainer) else gradient_norm(pl_module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count; at a log step, log."""
        facts: Facts = batch["facts"]
        self._sums.add(outputs["answer_losses"], facts)
        self._tokens += facts.tokens
        self._positions += facts.positions
        self._images += facts.images
        if trainer.global_step > self._logged and _is_log_step(trainer, trainer.global_step):
            engine = _engine_norm(trainer)
            norm = engine() if engine else self._norm
            extra = {} if norm is None else {"train/gradient_norm": float(norm)}
            self._log(trainer, pl_module, {**extra, **self._rates})

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log what came after the last log step."""
        if trainer.global_step > self._logged:
            self._log(trainer, pl_module, {})

    def _log(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, extra: Mapping[str, float]
    ) -> None:
        counts = (self._tokens, self._positions, self._images)
        sums, ranks = self._sums.over_ranks(trainer, *counts, *memory(pl_module.device).values())
        seconds = max(time.perf_counter() - self._since, 1e-9)  # after the gathering, which waits for the device
        losses, answer_tokens = sums[0], sums[1]
        tokens, positions, images = ranks[:, :3].sum(0).tolist()
        found: dict[str, float] = {**extra}
        if answer_tokens.sum() > 0:
            found["train/loss"] = float(losses.sum() / answer_tokens.sum())
        found |= _by_source("train/loss", self._names, losses, answer_tokens)
        found |= {
            "speed/tokens_per_second": tokens / seconds,
            "speed/images_per_second": images / seconds,
            "data/padding": 1.0 - tokens / positions,
            "data/answer_tokens": float(answer_tokens.sum()) / max(tokens, 1.0),
        }
        found |= dict(zip(memory(pl_module.device), ranks[:, 3:].amax(0).tolist(), strict=True))
        self._record(trainer, found)
        self._logged = trainer.global_step
        self._open(pl_module.device)

    @staticmethod
    def _record(trainer: lightning.Trainer, found: Mapping[str, float]) -> None:
        """To every logger, under the number of the last step, from 0; and for progress bar and checkpoints."""
        for logger in trainer.loggers:
            logger.log_metrics({**found, "epoch": trainer.current_epoch}, step=max(0, trainer.global_step - 1))
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in found.items()})

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop the training's clock."""
        self._pause = time.perf_counter()
        if self._counts(trainer):
            self._checked = _Sums(max(1, len(self._validation_names)), pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count."""
        if self._counts(trainer):
            self._checked.add(outputs["answer_losses"], batch["facts"], outputs["exact"])

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log loss and exact match by source."""
        if not (self._counts(trainer) and self._validation_names):
            return
        (losses, tokens, exact, answers), _ = self._checked.over_ranks(trainer)
        found = _by_source("validation/loss", self._validation_names, losses, tokens)
        found |= _by_source("validation/exact_match", self._validation_names, exact, answers)
        self._record(trainer, found)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Let the training's clock go on."""
        if self._counts(trainer):
            self._since += time.perf_counter() - self._pause

    def _counts(self, trainer: lightning.Trainer) -> bool:
        return trainer.state.fn == "fit" and not trainer.sanity_checking


def _is_log_step(trainer: lightning.Trainer, step: int) -> bool:
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and step % every == 0


def _engine_norm(trainer: lightning.Trainer) -> Any:
    """DeepSpeed's own function for the norm of the last step's gradient, which lies shared out over the ranks."""
    return getattr(trainer.model, "get_global_grad_norm", None)


def gradient_norm(module: nn.Module) -> Tensor | None:
    """The Euclidean norm of all gradients, those of all ranks where they are sharded; None where there is none."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    norms = []
    for sharded in (False, True):
        if some := [g for g in gradients if isinstance(g, DTensor) is sharded]:
            norm = nn.utils.get_total_norm(some)
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else None


def memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process took so far, in GB (1e9 bytes): in main memory, and on a GPU allocated."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"memory/main_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIGABYTE}
    if device.type == "cuda":
        found["memory/gpu_gb"] = torch.cuda.max_memory_allocated(device) / GIGABYTE
    return found

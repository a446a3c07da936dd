"""The metrics that a run records for every logger while it goes (docs/tracking.md)."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from visualchat.data.batching.stats import BatchStats

GIGABYTE = 1e9


class _Sums:
    """Sums over the batches since the last report, on one rank: losses stay on the device, counts are plain numbers."""

    def __init__(self, sources: int, device: torch.device) -> None:
        self.losses = torch.zeros(sources, device=device)
        self.tokens = [0] * sources
        self.exact = [0] * sources
        self.answers = [0] * sources

    def add(self, losses: Tensor, stats: BatchStats, exact: Sequence[bool] = ()) -> None:
        """Count a batch: the loss of each answer token, and in validation whether each answer is exact."""
        self.losses.index_add_(0, stats.token_source, losses.float())
        self.tokens = [a + b for a, b in zip(self.tokens, stats.answer_tokens, strict=True)]
        for source, right in zip(stats.answer_source, exact, strict=False):
            self.exact[source] += right
            self.answers[source] += 1

    def over_ranks(self, trainer: lightning.Trainer, *more: float) -> tuple[Tensor, Tensor]:
        """Those of all ranks: ([losses, tokens, exact, answers], each by source), and (ranks, n) of `more`.

        Every rank must call this at the same time.
        """
        counts = torch.tensor([*self.tokens, *self.exact, *self.answers, *more], device=self.losses.device)
        values = torch.cat([self.losses, counts.to(self.losses.dtype)])
        by_rank = trainer.strategy.all_gather(values).reshape(-1, len(values)).cpu().double()
        split = 4 * len(self.tokens)
        return by_rank[:, :split].sum(0).reshape(4, -1), by_rank[:, split:]


def _by_source(name: str, names: Sequence[str], above: Tensor, below: Tensor) -> dict[str, float]:
    """`above / below` of each named source that has anything below; nothing where sources have no names."""
    named = zip(names, above, below, strict=True) if names else ()
    return {f"{name}/{source}": float(a / b) for source, a, b in named if b > 0}


class RunMetrics(lightning.Callback):
    """Logs what a run does to every logger, at every log step and every validation, summed over all ranks.

    Between log steps it counts plain numbers and makes one small addition on the device; it waits for the device and
    for other ranks at log steps only. `docs/tracking.md` lists the metrics.
    """

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin the first window."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._names, self._validation_names = data.train.names, data.validation.names
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
        stats: BatchStats = batch["stats"]
        self._sums.add(outputs["answer_losses"], stats)
        self._tokens += stats.tokens
        self._positions += stats.positions
        self._images += stats.images
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
        sums, ranks = self._sums.over_ranks(trainer, *counts, *peak_memory(pl_module.device).values())
        seconds = max(time.perf_counter() - self._since, 1e-9)  # after the gathering, which waits for the device
        losses, answer_tokens = sums[0], sums[1]
        tokens, positions, images = ranks[:, :3].sum(0).tolist()
        metrics: dict[str, float] = {**extra}
        if answer_tokens.sum() > 0:
            metrics["train/loss"] = float(losses.sum() / answer_tokens.sum())
        metrics |= _by_source("train/loss", self._names, losses, answer_tokens)
        metrics |= {
            "speed/tokens_per_second": tokens / seconds,
            "speed/images_per_second": images / seconds,
            "data/padding": 1.0 - tokens / positions,
            "data/answer_tokens": float(answer_tokens.sum()) / max(tokens, 1.0),
        }
        metrics |= dict(zip(peak_memory(pl_module.device), ranks[:, 3:].amax(0).tolist(), strict=True))
        self._record(trainer, metrics)
        self._logged = trainer.global_step
        self._open(pl_module.device)

    @staticmethod
    def _record(trainer: lightning.Trainer, metrics: Mapping[str, float]) -> None:
        """To every logger, under the number of the last step, from 0; and for progress bar and checkpoints."""
        for logger in trainer.loggers:
            logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=max(0, trainer.global_step - 1))
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})

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
            self._checked.add(outputs["answer_losses"], batch["stats"], outputs["exact"])

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log loss and exact match by source."""
        if not (self._counts(trainer) and self._validation_names):
            return
        (losses, tokens, exact, answers), _ = self._checked.over_ranks(trainer)
        metrics = _by_source("validation/loss", self._validation_names, losses, tokens)
        metrics |= _by_source("validation/exact_match", self._validation_names, exact, answers)
        self._record(trainer, metrics)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the training's clock again."""
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


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process took so far, in GB (1e9 bytes): in main memory, and on a GPU allocated."""
    unit = 1 if sys.platform == "darwin" else 1024
    used = {"memory/main_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIGABYTE}
    if device.type == "cuda":
        used["memory/gpu_gb"] = torch.cuda.max_memory_allocated(device) / GIGABYTE
    return used

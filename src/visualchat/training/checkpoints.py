"""Saves the last, the one before and the best checkpoint, so that a kill at any moment costs some steps, never the run.

A checkpoint is written beside its place, synced to the disk and renamed, so what bears a checkpoint's name is complete.
It is made only between two optimizer steps, after the validation and the log rows of the step before: nothing of a step
is ever half done in it.
"""

from __future__ import annotations

import math
import os
import random
import shutil
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from visualchat.training.logs import forget_from
from visualchat.training.resume import BEST, LAST, PREVIOUS


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt`, `previous.ckpt` and `best.ckpt` in a folder; a checkpoint is a file, or a folder of shards.

    The last is always kept beside the best, because it often chats better (arXiv 2309.14327, section 4.3).

    Args:
        folder: Where they go; on several machines a folder that all of them see.
        monitor: The validation metric of the best one.
        mode: `max` or `min`, which values of it are better.
        every_n_steps: Optimizer steps from one `last.ckpt` to the next; there is one at each epoch's end anyway.

    Raises:
        ValueError: The mode is unknown or the number of steps not positive.
    """

    def __init__(self, folder: str | Path, monitor: str, mode: str = "max", every_n_steps: int = 100) -> None:
        if mode not in ("max", "min") or every_n_steps < 1:
            raise ValueError(f"expected mode max or min and every_n_steps of 1 or more, found {mode}, {every_n_steps}")
        self.folder, self.monitor, self.mode, self.every_n_steps = Path(folder), monitor, mode, every_n_steps
        self.best: float | None = None
        self._best_is_due = False
        self._saved_at = 0  # optimizer steps done at the last save
        self._random: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """The best score, and the state of every rank's random numbers."""
        return {"best": self.best, "random": _of_all_ranks(random_state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best score, if the best checkpoint is here; random numbers follow when training starts."""
        self.best = state_dict["best"] if (self.folder / BEST).exists() else None
        self._random = state_dict["random"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Restore random numbers, and drop what loggers hold of steps that come again.

        Raises:
            ValueError: A fresh run would write over the checkpoints of another.
        """
        self._saved_at = trainer.global_step
        if trainer.ckpt_path is None and trainer.is_global_zero and (self.folder / LAST).exists():
            raise ValueError(
                f"{self.folder} holds the checkpoints of an earlier run: "
                "go on with resume=auto, or choose another folder"
            )
        if len(self._random) == trainer.world_size:
            set_random_state(self._random[trainer.global_rank])
        # Lightning's count of logged steps is this one, but for what its loop is about to add where it goes on
        loop = trainer.fit_loop.epoch_loop
        added = loop.restarting and not loop._should_accumulate() and not loop.restarted_on_last
        loop._batches_that_stepped = trainer.global_step - added
        forget_from(trainer.loggers, trainer.global_step)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note whether this is the best so far; it is saved when the step is over."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise ValueError(f"the best checkpoint is chosen by {self.monitor!r}, which is not among {known}")
        score = trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))  # all ranks save, or none
        better = self.best is None or (score > self.best if self.mode == "max" else score < self.best)
        if better and not math.isnan(score):
            self.best, self._best_is_due = score, True

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save what the step before has made due."""
        done = trainer.global_step  # it counts optimizer steps: just after one, no gradient is only partly accumulated
        starts_epoch = batch_idx == 0 and done > self._saved_at
        self._save_what_is_due(trainer, last=starts_epoch or done >= self._saved_at + self.every_n_steps)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the end of the run."""
        self._save_what_is_due(trainer, last=trainer.global_step > self._saved_at)

    def _save_what_is_due(self, trainer: lightning.Trainer, *, last: bool) -> None:
        if self._best_is_due:  # before the last one, which then knows of it
            self._best_is_due = False
            self._save(trainer, self.folder / BEST)
        if last:
            self._saved_at = trainer.global_step
            self._save(trainer, self.folder / LAST, self.folder / PREVIOUS)

    def _save(self, trainer: lightning.Trainer, path: Path, previous: Path | None = None) -> None:
        """Write beside `path`, then move what is there to `previous` and the new one to `path`."""
        part = path.with_suffix(".part")
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # so that no row of a step that is not repeated is lost
            _remove(part)  # of a save that was cut short
        trainer.strategy.barrier()
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            for written in (*part.rglob("*"), part):
                _sync(written)
            if previous is not None and path.exists():
                _move(path, previous)
            _move(part, path)
            _sync(self.folder)
        trainer.strategy.barrier()


def _move(source: Path, target: Path) -> None:
    """Put `source` in the place of `target`; at once if both are files."""
    if source.is_dir() or target.is_dir():
        _remove(target)
    source.replace(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the disk hold a file, or a folder's list of entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def random_state() -> dict[str, Any]:
    """The state of this process's generators, in types that a checkpoint may hold."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put this process's generators into the state that `random_state` gave."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def _of_all_ranks(value: dict[str, Any]) -> list[dict[str, Any]]:
    if not torch.distributed.is_initialized():
        return [value]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found

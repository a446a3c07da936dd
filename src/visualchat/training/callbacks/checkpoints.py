"""Saves the last, the one before and the best checkpoint, so that an end at any moment costs some steps, never the run.

A checkpoint is made only between two optimizer steps, after the validation and the log rows of the step before: nothing
of a step is ever half done in it. How it gets to the disk: `training/checkpoint_io.py`.
"""

from __future__ import annotations

import math
import random
from functools import partial
from pathlib import Path
from signal import SIGKILL
from signal import Signals as Signal
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from visualchat.data.datamodule import epoch_is_cut
from visualchat.training.loggers import forget_from
from visualchat.training.ranks import largest_of_ranks, of_all_ranks
from visualchat.training.resume import BEST, LAST, PREVIOUS
from visualchat.training.stopping import SIGNALS, RunStopped, Signals


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
        self._step: int | None = None  # optimizer steps done when the last batch began
        self._random: list[dict[str, Any]] = []
        self.signals = Signals()

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Until training starts there is nothing to save: a signal ends the run at once, its other ranks included."""
        if stage == "fit":
            launcher = trainer.strategy.launcher
            self.signals.at_once = None if launcher is None else partial(launcher.kill, SIGKILL)
            self.signals.listen()

    def state_dict(self) -> dict[str, Any]:
        """The best score, and the state of every rank's random numbers."""
        return {"best": self.best, "random": of_all_ranks(random_state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the best score, if the best checkpoint is here; random numbers follow when training starts."""
        self.best = state_dict["best"] if (self.folder / BEST).exists() else None
        self._random = state_dict["random"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Restore random numbers, and drop what loggers hold of steps that come again.

        Raises:
            ValueError: A fresh run would write over the checkpoints of another.
        """
        self.signals.listen()
        self.signals.gentle = True
        self._saved_at = trainer.global_step
        if trainer.ckpt_path is None and trainer.is_global_zero and (self.folder / LAST).exists():
            raise ValueError(
                f"{self.folder} holds the checkpoints of an earlier run: "
                "resume it with resume=auto, or choose another folder"
            )
        if len(self._random) == trainer.world_size:
            set_random_state(self._random[trainer.global_rank])
        # Lightning's count of logged steps is this one, less what its loop is about to add where it resumes: the first
        # lines of `_TrainingEpochLoop.reset` (2.6) have the condition
        loop = trainer.fit_loop.epoch_loop
        validates = loop.val_loop.restarted_mid_evaluation
        added = loop.restarting and not loop._should_accumulate() and (validates or not loop.restarted_on_last)
        loop._batches_that_stepped = trainer.global_step - added
        forget_from(trainer.loggers, trainer.global_step)

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """End the run if a signal asked for that: the resumed run validates from the first batch on.

        Between two optimizer steps, where gradients are partly accumulated, nothing can be saved; there a signal waits.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit" or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        if signal := self._asked_to_stop(trainer):
            self._save_what_is_due(trainer, last=trainer.global_step > self._saved_at)
            raise _stopped(trainer, signal)

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
        """Save what the step before has made due, and end the run if a signal asked for that."""
        done = trainer.global_step  # it counts optimizer steps: just after one, no gradient is only partly accumulated
        new = done != self._step
        self._step = done
        signal = self._asked_to_stop(trainer) if new else 0
        due = batch_idx == 0 or done >= self._saved_at + self.every_n_steps or signal
        self._save_what_is_due(trainer, last=new and bool(due) and done > self._saved_at)
        if signal:
            raise _stopped(trainer, signal)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the end of the run."""
        self._save_what_is_due(trainer, last=trainer.global_step > self._saved_at)
        if signal := self._asked_to_stop(trainer):
            raise _stopped(trainer, signal)
        self.signals.gentle = False

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Signals mean what they meant before."""
        self.signals.give_back()

    def _asked_to_stop(self, trainer: lightning.Trainer) -> int:
        """The signal that any rank has got; 0 for none."""
        return int(largest_of_ranks(trainer, self.signals.received))

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """An epoch that `max_steps` cut short is not over: a run that is given more steps continues it.

        Nor is a validation that a signal ends: Lightning is told of a stop in its first batch, and does it again.
        """
        if trainer.validating:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for count in ("total", "current"):
                progress[count] |= dict.fromkeys(progress[count], 0)
            progress["total"] |= {"ready": 1, "started": 1}
        if epoch_is_cut(trainer):
            for name in ("processed", "completed"):  # Lightning has counted it
                checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"][name] -= 1

    def _save_what_is_due(self, trainer: lightning.Trainer, *, last: bool) -> None:
        if self._best_is_due:  # before the last one, which then knows of it
            self._best_is_due = False
            self._save(trainer, self.folder / BEST)
        if last:
            self._save(trainer, self.folder / LAST, self.folder / PREVIOUS)
            self._saved_at = trainer.global_step

    def _save(self, trainer: lightning.Trainer, path: Path, previous: Path | None = None) -> None:
        """Put a checkpoint in the place of `path`, and what is there in that of `previous`.

        Raises:
            RunStopped: On all ranks: the disk of one does not take it.
        """

        def rows() -> None:
            for logger in trainer.loggers if trainer.is_global_zero else ():
                logger.save()  # so that no row of a step that is not repeated is lost

        def checkpoint() -> None:
            try:
                trainer.save_checkpoint(path, storage_options={"previous": previous})
            except OSError:
                trainer.strategy.barrier()  # the one with which Lightning ends a save, where the other ranks wait
                raise

        for action in (rows, checkpoint):
            failure: OSError | None = None
            try:
                action()
            except OSError as error:
                failure = error
            if errors := [str(error) for error in of_all_ranks(failure) if error is not None]:
                raise RunStopped(f"step {trainer.global_step} could not be saved in {self.folder}: {errors[0]}")


def _stopped(trainer: lightning.Trainer, signal: int) -> RunStopped:
    return RunStopped(f"stopped by {SIGNALS[Signal(signal)]} after step {trainer.global_step}", 128 + signal)


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

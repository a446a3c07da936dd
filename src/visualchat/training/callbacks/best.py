"""The model of the best validation in place of the last one's, when training is over."""

from __future__ import annotations

from pathlib import Path

import lightning
import torch
from torch import Tensor

from visualchat.training.callbacks.checkpoints import Checkpoints
from visualchat.training.checkpoint_io import STATE, damage, manifest, nothing_but_tensors
from visualchat.training.module import VisualChatModule
from visualchat.training.resume import BEST
from visualchat.training.strategies.zero import trained_parts


def load_best(module: VisualChatModule, trainer: lightning.Trainer) -> dict[str, float]:
    """Put what the best checkpoint holds of the trained parameters into a gathered model, on rank 0.

    Returns:
        What belongs to these weights: the score by which they are the best (`callbacks.checkpoint.monitor`), and
        `train/best_step`, the optimizer steps before them.

    Raises:
        ValueError: Nothing was validated, or the checkpoint is damaged.
    """
    keeper = next(callback for callback in trainer.callbacks if isinstance(callback, Checkpoints))  # type: ignore[attr-defined]
    best = keeper.folder / BEST
    if keeper.best is None or not best.exists():
        raise ValueError(
            f"load_best_model_at_end=true: found no {best}, because nothing was validated; the line with "
            "load_best_model_at_end=false resume=auto saves the last model"
        )
    if reason := damage(best):
        raise ValueError(f"{best} is not usable: {reason}")
    left = module.model.load_state_dict(trained_parameters(best), strict=False).unexpected_keys
    assert not left, left
    return {keeper.monitor: keeper.best, "train/best_step": float(manifest(best)["step"])}


def trained_parameters(checkpoint: Path) -> dict[str, Tensor]:
    """The trained parameters in a checkpoint of any strategy, by their names in the model."""
    if not (checkpoint / STATE).is_file():
        return trained_parts(checkpoint)
    with nothing_but_tensors():
        state = torch.load(checkpoint / STATE, map_location="cpu")["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items()}

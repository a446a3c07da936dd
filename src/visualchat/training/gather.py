"""The end of a run on several ranks: one whole model on rank 0, and every process free to leave."""

from __future__ import annotations

import lightning
import torch

from visualchat.model.sharding import is_split_model
from visualchat.model.trainable import trainable_state
from visualchat.training.module import VisualChatModule


def gather_model(module: VisualChatModule, trainer: lightning.Trainer) -> None:
    """Make `module.model` a whole, ordinary model on rank 0; all ranks must call it after `fit`, and part with it.

    They part before the model is built, so that no other rank waits for rank 0 while it reads a large base.

    A model that was split over the ranks is rebuilt from its base, with the trained parameters inserted: only those
    ever travel. It stays on the CPU, because it may be too large for one GPU; any other is on its device again. On the
    other ranks `module.model` is of no use afterwards.
    """
    split = is_split_model(module.model)
    if split:
        trained = trainable_state(module.model)
        del module.model
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        trainer.strategy.barrier()
        torch.distributed.destroy_process_group()
    if not trainer.is_global_zero:
        return
    if split:
        module.model = module.assemble()
        unexpected = module.model.load_state_dict(trained, strict=False).unexpected_keys
        assert not unexpected, unexpected
    elif trainer.strategy.root_device.type != "cpu":
        module.to(trainer.strategy.root_device)  # Lightning leaves the model on the CPU

"""What the ranks of a run tell each other, and which of them this process is."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only


def largest_of_ranks(trainer: lightning.Trainer, value: float) -> float:
    """The largest value of all ranks; all of them must ask together."""
    if trainer.world_size == 1:
        return value
    largest = torch.tensor(value, device=trainer.strategy.root_device, dtype=torch.float64)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return float(largest)


def of_all_ranks(value: Any) -> list[Any]:
    """A value of each rank, in their order; all of them must ask together."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def is_first_rank() -> bool:
    """Whether this process is the first of all ranks, or the only one; known before a run starts, from the launcher."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0

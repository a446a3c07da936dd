"""How many batches make an optimizer step of a given number of rows. Imports nothing heavy: configurations ask."""

from __future__ import annotations

from collections.abc import Sequence


def batches_to_accumulate(rows: int, batch_size: int, devices: int | str | Sequence[int], num_nodes: int) -> int:
    """How many batches make one optimizer step of so many rows; `${accumulation:...}` in configurations.

    Args:
        rows: Of one step, over all devices.
        batch_size: Rows of a batch on each device.
        devices: Of each node, in any form that Lightning's Trainer takes.
        num_nodes: Machines.

    Raises:
        ValueError: The rows cannot be distributed evenly.
    """
    if devices in ("auto", -1, "-1"):
        import torch

        count = max(1, torch.cuda.device_count())
    else:
        count = int(devices) if isinstance(devices, int | str) else len(devices)
    rows_at_once = batch_size * count * num_nodes
    if rows % rows_at_once:
        raise ValueError(
            f"a step of rows_per_step={rows} cannot be made of batches of data.batch_size={batch_size} rows on each of "
            f"{count * num_nodes} devices: {batch_size} x {count * num_nodes} must divide {rows}"
        )
    return rows // rows_at_once

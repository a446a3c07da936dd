"""Where the configuration tree lies, its resolvers, and what keeps other libraries quiet. Imports nothing heavy."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "conf"  # in a wheel
CONF = str(_INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parents[1] / "conf")

LONGEST_NAME = 240
"""Bytes of a folder's name; 255 is the limit of common file systems."""


def run_name() -> str | None:
    """What was set on the command line, which tells a run from others; None for nothing. `${run_name:}` in YAML."""
    return HydraConfig.get().job.override_dirname[:128] or None  # W&B takes no longer name


def sweep_name() -> str | None:
    """Date and time of the sweep that this run belongs to; None for a single run. `${sweep_name:}` in YAML."""
    hydra = HydraConfig.get()
    if not Path(hydra.runtime.output_dir).is_relative_to(Path(hydra.sweep.dir).resolve()):
        return None
    return "/".join(part for part in Path(os.path.relpath(hydra.sweep.dir)).parts[-2:] if part != "..")


for _resolver in (run_name, sweep_name):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)


def quieten() -> None:
    """Keep other libraries' advertisements and notes to their own developers off people's screens."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the tiny world needs none
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def check_attention(attention: DictConfig) -> None:
    """Refuse, before anything is read or built, a choice of attention that does not exist.

    Raises:
        ValueError: A name is unknown; the nearest is named.
    """
    from visualchat.attention.functional import resolve_implementation
    from visualchat.attention.kinds import check_name
    from visualchat.model.configuration_visualchat import MODEL_KINDS, check_image_numbers

    check_name(attention.kind, MODEL_KINDS)
    resolve_implementation(attention.implementation)
    check_image_numbers(attention.image_numbers)


def rows_to_accumulate(rows: int, batch_size: int, devices: int | str | Sequence[int], num_nodes: int) -> int:
    """How many batches make one optimizer step of so many rows; `${accumulation:...}` in configurations.

    Args:
        rows: Of one step, over all devices.
        batch_size: Rows of a batch on each device.
        devices: Of each node, in any form that Lightning's Trainer takes.
        num_nodes: Machines.

    Raises:
        ValueError: The rows cannot be dealt out evenly.
    """
    if devices in ("auto", -1, "-1"):
        import torch

        count = max(1, torch.cuda.device_count())
    else:
        count = int(devices) if isinstance(devices, int | str) else len(devices)
    at_once = batch_size * count * num_nodes
    if rows % at_once:
        raise ValueError(
            f"a step of rows_per_step={rows} cannot be made of batches of data.batch_size={batch_size} rows on each of "
            f"{count * num_nodes} devices: {batch_size} x {count * num_nodes} must divide {rows}"
        )
    return rows // at_once


def folder_name(overrides: str, number: int) -> str:
    """The folder of a sweep's run: its overrides, or their start and its number where that is too long for a name."""
    return overrides if len(overrides.encode()) <= LONGEST_NAME else f"{overrides[: LONGEST_NAME // 4]}...{number}"


OmegaConf.register_new_resolver("accumulation", rows_to_accumulate, replace=True)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
